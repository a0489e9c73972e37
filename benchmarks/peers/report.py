"""The results of compare.py as tables and a plot."""

import itertools
import json
import pathlib


def heading(results):
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (f"{results['date']}, {results['processor']}, {results['cores']} cores, {results['threads']} threads, {results['dtype']}, "
            f"{results['flops_per_second'] / 1e9:.0f} GFLOP/s in a product of 2048x2048 matrices; {versions}")


def floor_ms(rows, flops_per_second):
    """What the matrix products and convolutions of the loop written by hand take at that rate, if it was counted."""
    flops = next((row["flops"] for row in rows if row["contender"] == "torch, by hand" and "flops" in row), None)
    return flops and 1e3 * flops / flops_per_second


def table(rows, flops_per_second):
    """A work's rows in Markdown."""
    floor = floor_ms(rows, flops_per_second)
    ours = next((row["min_ms"] for row in rows if row["contender"] == "gimli" and "min_ms" in row), None)
    lines = [f"### {rows[0]['work']}", ""]
    if floor:
        lines += [f"Arithmetic: {floor * flops_per_second / 1e12:.3g} GFLOP, at least {floor:.3g} ms.", ""]
    lines += ["| | ms: min | median | times gimli's | times the floor | threads | peak MB | operators | difference to gimli's |",
              "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        if "failure" in row:
            lines.append(f"| {row['contender']} | {row['failure'].replace('|', ' ')} " + 7 * "| " + "|")
            continue
        cells = [f"{row['min_ms']:.3g}", f"{row['median_ms']:.3g}", f"{row['min_ms'] / ours:.2f}" if ours else "",
                 f"{row['min_ms'] / floor:.3g}" if floor else "", str(row["threads"]), f"{row['peak_bytes'] / 1e6:.0f}",
                 f"{row['operators']:,}" if row.get("operators") else "", f"{row['difference']:.0e}"]
        lines.append(f"| {row['contender']} | " + " | ".join(cells) + " |")
    remarks = [f"{row['contender']}: {row['remark']}." for row in rows if row.get("remark")]
    return "\n".join(lines + ["", *remarks] if remarks else lines)


def works_of(results):
    return [(name, list(rows)) for name, rows in itertools.groupby(results["rows"], lambda row: row["work"])]


def plot(results, file):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    works = works_of(results)
    contenders = list(dict.fromkeys(row["contender"] for row in results["rows"]))
    figure, axes = pyplot.subplots(1, 2, sharey=True, figsize=(15, 1.6 + 0.42 * len(works)), layout="constrained")
    for axis, field, scale, title in ((axes[0], "min_ms", 1, "milliseconds of a meta-gradient (least)"),
                                      (axes[1], "peak_bytes", 1e-6, "peak memory, MB")):
        for i, contender in enumerate(contenders):
            points = [(row[field] * scale, at) for at, (_, rows) in enumerate(works) for row in rows
                      if row["contender"] == contender and field in row]
            ours, color = contender.startswith("gimli"), f"C{i % 10}"
            axis.scatter([x for x, _ in points], [at for _, at in points], marker="oDs^vPX<>*hp"[i % 12], s=50,
                         zorder=3 if ours else 2, facecolors=color if ours else "none", edgecolors=color, label=contender)
        axis.set_xscale("log")
        axis.set_title(title, fontsize=11)
        axis.grid(axis="x", which="major", color="#dddddd")
        for at in range(len(works)):
            axis.axhspan(at - 0.5, at + 0.5, color="#f5f5f5" if at % 2 else "white", zorder=0)
    floors = [(floor_ms(rows, results["flops_per_second"]), at) for at, (_, rows) in enumerate(works)]
    floors = [(floor, at) for floor, at in floors if floor]
    axes[0].scatter([x for x, _ in floors], [at for _, at in floors], marker="|", s=160, color="black",
                    label="arithmetic floor")
    axes[0].set_yticks(range(len(works)), [name for name, _ in works])
    axes[0].set_ylim(len(works) - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(file, dpi=110)


def write(results, file):
    """Writes the results, and a page and a plot beside them."""
    file, picture = pathlib.Path(file), pathlib.Path(file).with_suffix(".png")
    file.write_text(json.dumps(results, indent=1) + "\n")
    plot(results, picture)
    tables = [table(rows, results["flops_per_second"]) for _, rows in works_of(results)]
    page = ["# gimli beside its peers", heading(results) + ".", f"![Time and peak memory of each work]({picture.name})",
            "Printed by `benchmarks/peers/run.sh`; [its README](README.md) says what the works and the columns are.", *tables]
    file.with_suffix(".md").write_text("\n\n".join(page) + "\n")
