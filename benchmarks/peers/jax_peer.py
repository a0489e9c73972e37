"""The contender on JAX and optax, compiled, vectorized over tasks: jax_peer.py FOLDER [checkpoint]. With `checkpoint` the
backward pass keeps the state of each step alone."""

import sys

import jax
import jax.numpy as jnp
import optax

import contender
import work
from jax_networks import forward, linear

spec, initial, hyperparameters, data = work.read(sys.argv[1])
jax.config.update("jax_enable_x64", spec["dtype"] == "float64")
checkpoint = "checkpoint" in sys.argv[2:]
learned, lr = spec["learned"], spec["lr"]
meta_parameters = jax.tree.map(jnp.asarray, (initial, hyperparameters))
data = [jnp.asarray(data[name]) for name in ("x", "y", "xq", "yq")]


def loss(parameters, x, y):
    output = forward(spec, parameters, x)
    if "ways" in spec:
        return optax.softmax_cross_entropy_with_integer_labels(output, y).mean()
    return jnp.square(output - y).mean()


def inner_loss(parameters, hyperparameters, x, y):
    value = loss(parameters, x, y)
    if learned == "penalties":
        value += sum(jnp.exp(h) * jnp.square(p).sum() for h, p in zip(hyperparameters[0], parameters))
    return value


def lstm(hyperparameters):
    """Andrychowicz et al. 2016."""

    def init(parameters):
        return 2 * [2 * [jnp.zeros((sum(p.size for p in parameters), spec["hidden"]), spec["dtype"])]]

    def update(gradients, state, parameters):
        g = jnp.concatenate([g.ravel() for g in gradients])
        large = jnp.abs(g) >= jnp.exp(-10.0)
        logarithm = jnp.log(jnp.where(large, jnp.abs(g), 1)) / 10
        x = jnp.stack([jnp.where(large, logarithm, -1), jnp.where(large, jnp.sign(g), jnp.exp(10.0) * g)], -1)
        following = []
        for layer, (h, c) in enumerate(state):
            from_x, from_h, bias_x, bias_h = hyperparameters[4 * layer : 4 * layer + 4]
            i, f, new, o = jnp.split(linear(x, from_x, bias_x) + linear(h, from_h, bias_h), 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(new)
            x = jax.nn.sigmoid(o) * jnp.tanh(c)
            following.append([x, c])
        u, updates = lr * linear(x, *hyperparameters[8:]).squeeze(-1), []
        for p in parameters:
            updates.append(u[: p.size].reshape(p.shape))
            u = u[p.size :]
        return updates, following

    return optax.GradientTransformation(init, update)


def optimizer_of(hyperparameters):
    if learned == "optimizer":
        return lstm(hyperparameters)
    if learned == "rates":
        return optax.stateless(lambda gradients, _: [-jnp.exp(h) * g for h, g in zip(hyperparameters[0], gradients)])
    return (optax.adam if spec["optimizer"] == "adam" else optax.sgd)(lr)


def outer(meta_parameters, x, y, xq, yq):
    parameters, hyperparameters = meta_parameters
    optimizer = optimizer_of(hyperparameters)

    def step(carry, _):
        parameters, state = carry
        updates, state = optimizer.update(jax.grad(inner_loss)(parameters, hyperparameters, x, y), state, parameters)
        return (optax.apply_updates(parameters, updates), state), None

    if checkpoint:
        step = jax.checkpoint(step)
    carry = parameters, optimizer.init(parameters)
    if spec["steps"] <= 10:
        for _ in range(spec["steps"]):
            carry, _ = step(carry, None)
    else:  # unrolled, it would take minutes to compile
        carry, _ = jax.lax.scan(step, carry, length=spec["steps"])
    return loss(carry[0], xq, yq)


def of_all(meta_parameters, data):
    return jax.grad(lambda p: jax.vmap(outer, (None, 0, 0, 0, 0))(p, *data).mean())(meta_parameters)


of_all = jax.jit(of_all).lower(meta_parameters, data).compile()
contender.serve(lambda: jax.tree.leaves(jax.block_until_ready(of_all(meta_parameters, data))))
