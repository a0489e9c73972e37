"""The networks of work.py as functions of a list of parameters, for JAX."""

import jax
import jax.numpy as jnp


def linear(x, weight, bias):
    return x @ weight.T + bias


def convolution(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))


def norm(x, scale, shift, axes=(0, 2, 3)):
    """Over these axes; scale and shift are of another one."""
    mean = x.mean(axes, keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(jnp.square(x - mean).mean(axes, keepdims=True) + 1e-5)
    shape = (-1, 1, 1) if len(axes) == 3 else (-1,)
    return x * scale.reshape(shape) + shift.reshape(shape)


def pool(x, initial, combine):
    return jax.lax.reduce_window(x, initial, combine, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def mlp(spec, take, x):
    for layer in range(len(spec["sizes"]) - 1):
        x = linear(x if layer == 0 else jax.nn.relu(x), *take(2))
    return x


def conv4(spec, take, x):
    for _ in range(4):
        x = convolution(x, *take(1)) + take(1)[0][:, None, None]
        x = pool(jax.nn.relu(norm(x, *take(2))), -jnp.inf, jax.lax.max)
    return linear(x.reshape(x.shape[0], -1), *take(2))


def resnet12(spec, take, x):
    for _ in spec["widths"]:
        y = x
        for layer in range(3):
            y = norm(convolution(y if layer == 0 else jax.nn.relu(y), *take(1)), *take(2))
        x = pool(jax.nn.relu(y + norm(convolution(x, *take(1)), *take(2))), -jnp.inf, jax.lax.max)
    return linear(x.mean((2, 3)), *take(2))


def densenet(spec, take, x):
    x = convolution(x, *take(1))
    for block in range(3):
        if block > 0:
            x = pool(convolution(jax.nn.relu(norm(x, *take(2))), *take(1)), 0.0, jax.lax.add) / 4
        for _ in range(spec["layers"]):
            y = x
            for _ in range(2):
                y = convolution(jax.nn.relu(norm(y, *take(2))), *take(1))
            x = jnp.concatenate([x, y], 1)
    return linear(jax.nn.relu(norm(x, *take(2))).mean((2, 3)), *take(2))


def transformer(spec, take, x):
    examples, tokens, width = x.shape
    for _ in range(spec["layers"]):
        parts = linear(x, *take(2)).reshape(examples, tokens, 3, spec["heads"], -1)
        query, key, value = (parts[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        weights = jax.nn.softmax(query @ key.swapaxes(2, 3) / jnp.sqrt(query.shape[-1]))
        attended = linear((weights @ value).transpose(0, 2, 1, 3).reshape(x.shape), *take(2))
        feed_forward, norms = take(4), take(4)
        x = norm(x + attended, *norms[:2], axes=(2,))
        x = norm(x + linear(jax.nn.relu(linear(x, *feed_forward[:2])), *feed_forward[2:]), *norms[2:], axes=(2,))
    return linear(x.mean(1), *take(2))


NETWORKS = {"mlp": mlp, "conv4": conv4, "resnet12": resnet12, "densenet": densenet, "transformer": transformer}


def forward(spec, parameters, x):
    rest = iter(parameters)
    return NETWORKS[spec["network"]](spec, lambda count: [next(rest) for _ in range(count)], x)
