#!/usr/bin/env bash
# rich 15.0.0: where nobody reads stderr any more, Console(stderr=True).print points *stdout* at /dev/null and raises
# SystemExit(1): a program that prints its progress to stderr loses the result that it would have printed to stdout.
# Seen: exit 1 and nothing on stdout; with a reader of stderr, exit 0 and the result.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --disable-pip-version-check rich==15.0.0
export PATH="$folder/environment/bin:$PATH"
cat >finding.py <<'PY'
from rich.console import Console

progress = Console(stderr=True)
for _ in range(100):
    progress.print("progress " * 1000)
print("the result")
PY
cat >expected.txt <<'OUT'
rich 15.0.0
with a reader: the result, exit 0
without a reader: , exit 1
OUT
told() { # what came on stdout, and the exit code, of a program whose stderr goes to the command given
  local code=0
  python finding.py >out.txt 2> >("$@" >/dev/null) || code=$?
  echo "$(cat out.txt), exit $code"
}
{
  pip list 2>/dev/null | awk '$1 == "rich" {print "rich", $2}'
  echo "with a reader: $(told cat)"
  echo "without a reader: $(told true)"
} >found.txt
cat found.txt
diff expected.txt found.txt && echo "as it was"
