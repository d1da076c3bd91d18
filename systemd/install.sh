#!/bin/sh
# Put the units into their folder: `sh install.sh PREFIX ETC UNITS`, from `make install`.
# Type=notify-reload is understood from systemd 253 on; an older one ignores it, and would take the daemon for started at
# once and for not reloadable. For that one the daemon's unit says Type=notify and how it is reloaded.
set -eu
prefix=$1 etc=$2 units=$3
here=$(dirname "$0")
first=253

version=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9][0-9]*\).*/\1/p')
older=
if [ -z "$version" ]; then
  echo "units: no systemd is found; they are written for $first or newer (on an older one run this again there)"
elif [ "$version" -lt "$first" ]; then
  older='s,^Type=notify-reload$,Type=notify\nExecReload=/bin/kill -HUP $MAINPID,'
  echo "units: systemd $version is older than $first and has no Type=notify-reload: Type=notify with ExecReload= instead"
else
  echo "units: systemd $version, Type=notify-reload"
fi

for unit in "$here"/*.service; do
  sed -e "s,/opt/cosched,$prefix,; s,/etc/cosched,$etc,g" -e "$older" "$unit" > "$units/$(basename "$unit")"
done
