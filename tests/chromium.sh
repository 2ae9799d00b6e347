#!/bin/sh
# Make the program $1 run Chromium: that of the system, or else Debian's, which is installed, with the
# fonts that the page's pictures are made with. That needs root.
set -eu
program=$1
find_it() {
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        command -v "$name" && return
    done
    return 1
}

if ! found=$(find_it); then
    if [ "$(id -u)" != 0 ] || [ -z "$(command -v apt-get)" ]; then
        echo "the tests need Chromium; install it, on Debian by: apt-get install chromium" >&2
        exit 1
    fi
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq --no-install-recommends --yes install \
        chromium fonts-inter fonts-jetbrains-mono >/dev/null
    found=$(find_it)
fi
printf '#!/bin/sh\nexec "%s" "$@"\n' "$found" >"$program"
chmod +x "$program"
