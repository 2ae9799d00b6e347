#!/bin/sh
# Make the program $1 run PgBouncer: that of the system, or else Debian's, which is unpacked beside it
# and not installed, since that would need root and start a service.
set -eu
program=$1
run() {
    printf '#!/bin/sh\n%s exec "%s" "$@"\n' "$2" "$1" >"$program"
    chmod +x "$program"
}

if found=$(PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v pgbouncer); then
    run "$found" ""
    exit
fi
if [ -z "$(command -v apt-get)" ]; then
    echo "the tests need PgBouncer; install it, by whatever means this system has" >&2
    exit 1
fi
folder=$(cd "$(dirname "$program")" && pwd)/pgbouncer.d
rm -rf "$folder"
mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/root"
apt() {
    apt-get -qq -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder/cache" \
        -o Debug::NoLocking=1 -o APT::Sandbox::User= "$@"
}
apt update
apt --no-install-recommends --download-only --yes install pgbouncer
for package in "$folder"/cache/archives/*.deb; do
    dpkg-deb --extract "$package" "$folder/root"
done
rm -rf "$folder/lists" "$folder/cache"
libraries=$(find "$folder/root" -name '*.so.*' -exec dirname {} \; | sort -u | paste -sd:)
run "$folder/root/usr/sbin/pgbouncer" "LD_LIBRARY_PATH=\"$libraries\""
