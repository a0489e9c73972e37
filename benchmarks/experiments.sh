#!/usr/bin/env bash
# Runs the -small presets of all experiments (or those whose EXPERIMENT/PRESET matches a pattern) and gathers what they
# claim in OUT/claims.md: benchmarks/experiments.sh DATA_ROOT [OUT [PATTERN]]. DATA_ROOT has Omniglot and CIFAR-10;
# Fashion-MNIST is Debian's package. What is done in OUT is not done again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/build.sh"
(($# >= 1)) || { sed -n '2,4p' "${BASH_SOURCE[0]}" >&2; exit 2; }
data_root=$(cd "$1" && pwd) out=${2:-runs/small} pattern=${3:-}

[[ ${GIMLI:-} ]] || build release gimli_command
gimli=${GIMLI:-$root/build/release/app/gimli}
for file in "$root"/app/presets/*/*-small.toml; do
  preset=$(basename "$file" .toml) experiment=$(basename "$(dirname "$file")")
  [[ $experiment/$preset =~ $pattern && $preset != mini-imagenet* ]] || continue
  folder=$out/$experiment/$preset arguments=()
  [[ ! -e $folder/report.json && ! -e $folder/ablation.json ]] || continue
  grep -qE '"(sinusoid|quadratic|fashion-mnist)"' "$file" || arguments+=(--data-root "$data_root")
  if [[ $experiment == ablation ]]; then
    arguments=(ablate maml++ "${arguments[@]}")
  else
    arguments=(train "$experiment" "${arguments[@]}")
    [[ ! -e $folder/checkpoint.pt ]] || arguments+=(--resume)
  fi
  printf '\n## %s %s\n' "$experiment" "$preset"
  "$gimli" "${arguments[@]}" --preset "$preset" --out "$folder" --quiet
done

python3 - "$out" <<'PYTHON'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
rows = []
for file in sorted(out.glob("*/*/report.json")):
    for claim in json.loads(file.read_text()).get("claims", []):
        number = lambda x: "" if x is None else f"{x:.4g}"
        rows.append((f"{file.parent.parent.name} {file.parent.name}", claim["claim"], number(claim["learned"]),
                     number(claim["baseline"]), "yes" if claim["holds"] else "no"))
head = ("run", "claim", "learned", "against", "holds")
text = "".join("| " + " | ".join(row) + " |\n" for row in (head, ("---", "---", "---:", "---:", "---")) + tuple(rows))
(out / "claims.md").write_text(text)
print("\n" + text)
PYTHON
