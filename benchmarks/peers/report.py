"""The results of compare.py in words."""


def heading(results):
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (f"{results['date']}, {results['processor']}, {results['cores']} cores, {results['threads']} threads, "
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
