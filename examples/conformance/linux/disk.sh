# The job of a ramdisk whose block frontend is judged: does to /dev/xvda what the kit asks for on the console.
#
#     kit     paravirt: NUMBER read SECTOR COUNT | write SECTOR COUNT PATTERN | flush | size | nothing
#     guest   paravirt: ready
#     guest   paravirt: NUMBER ok [BASE64] | paravirt: NUMBER error
#
# Each access is one read(2) or write(2) past the page cache, so that it is one request where that has room for it.
exec </dev/hvc0 >/dev/hvc0
stty -echo
set -o pipefail
disk=/dev/xvda

access() {
    case $2 in
    read)
        dd if=$disk bs=$(($4 * 512)) count=1 skip=$(($3 * 512)) iflag=direct,skip_bytes 2>/dev/null | base64 -w 0
        ;;
    write)
        file=/tmp/$1 size=$(($4 * 512))
        echo "$5" | xxd -r -p >"$file"
        while [ "$(stat -c %s "$file")" -lt $size ]; do
            cat "$file" "$file" >"$file.more" && mv "$file.more" "$file"
        done
        dd if="$file" of=$disk bs=$size count=1 seek=$(($3 * 512)) oflag=direct,seek_bytes conv=notrunc 2>/dev/null
        ;;
    flush) dd if=/dev/null of=$disk count=0 conv=fsync,notrunc 2>/dev/null ;;
    # As a number of 64 bits: base64 is what answers come in.
    size) printf '%016x' "$(cat /sys/class/block/xvda/size)" | xxd -r -p | rev8 | base64 -w 0 ;;
    nothing) ;;
    esac
}

# The bytes of a number, lowest first.
rev8() { xxd -p | sed 's/../& /g' | awk '{ for (n = NF; n; n--) printf "%s", $n }' | xxd -r -p; }

# In one echo, so that answers of jobs at the same time do not mix.
job() {
    if data=$(access "$@"); then echo "paravirt: $1 ok $data"; else echo "paravirt: $1 error"; fi
}

echo "paravirt: ready"
while read -r mark words; do
    [ "$mark" = paravirt: ] && job $words &
done
