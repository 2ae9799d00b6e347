#!/bin/sh
# Make the program $1 run the shell of SQLite: that of the system, or else Debian's, which is
# installed. That needs root.
set -eu
program=$1
if ! found=$(command -v sqlite3); then
    if [ "$(id -u)" != 0 ] || [ -z "$(command -v apt-get)" ]; then
        echo "the tests need the shell of SQLite; install it, on Debian by: apt-get install sqlite3" >&2
        exit 1
    fi
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq --no-install-recommends --yes install sqlite3 >/dev/null
    found=$(command -v sqlite3)
fi
printf '#!/bin/sh\nexec "%s" "$@"\n' "$found" >"$program"
chmod +x "$program"
