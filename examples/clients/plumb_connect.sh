#!/bin/sh
# plumb_connect.sh SERVICE MESSAGE: send one message to a service and print its answer. A message of LibIPC's is 4 bytes
# of length, big endian, and a payload; `plumb` does the rest. Its exit status is this one's.
set -eu
service=$1 message=$2
size=$(printf %s "$message" | wc -c)
length=$(printf '\\%03o' $((size >> 24 & 255)) $((size >> 16 & 255)) $((size >> 8 & 255)) $((size & 255)))
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
{ printf "$length"; printf %s "$message"; } | plumb connect "$service" >"$answer"
[ "$(wc -c <"$answer")" -ge 4 ] || { echo "$service: no answer" >&2; exit 2; }
tail -c +5 "$answer"
