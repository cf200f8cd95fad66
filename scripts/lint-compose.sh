#!/usr/bin/env bash
# Has every compose that is here read docker-compose.yml, alone and with docker-compose.gpu.yml, and lints both.
# The latter has fragments only, so what is linted is what a compose makes of the two together.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp docker-compose.yml docker-compose.gpu.yml "$scratch"
printf 'TANDEM_HOME=/srv/tandem\nSTACK_UID=10001\nSTACK_GID=10001\n' > "$scratch/.env"

lint() { .venv/bin/compose-lint --config .compose-lint.yml --strict-config --quiet --skip-suppressed --fail-on medium "$1"; }

read_by() {  # COMPOSE...
  cd "$scratch"
  "$@" --profile train --profile intel --profile postgres config -q
  "$@" -f docker-compose.yml -f docker-compose.gpu.yml --profile train --profile intel --profile postgres config > both.yml
}

lint "$scratch/docker-compose.yml"
for compose in "docker compose" docker-compose; do
  read -ra words <<< "$compose"
  if "${words[@]}" version >/dev/null 2>&1; then
    (read_by "${words[@]}")
    echo "$compose reads both files."
    lint "$scratch/both.yml"
  else
    echo "$compose is not here: it read neither file."
  fi
done
[ -f "$scratch/both.yml" ] || echo "docker-compose.gpu.yml was not linted: no compose is here to join it to the other." >&2
