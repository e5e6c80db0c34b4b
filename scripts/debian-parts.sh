# For builds of small Linux systems from Debian packages (sample-guest/build, helper-vm/build): bash functions, to be sourced.
#
# The caller sets, before it calls anything: `cache` (its directory), `wanted` (the packages it names), `what` (its own name
# for messages). `resolve_packages` fills `versions` and `kernel_package`; `unpack_packages` fills `work`, a directory that
# goes when the shell ends: $work/stage holds all packages but the kernel's, $work/kernel that one. Nothing is mounted and
# no chroot is used. Packages are kept beside the cache, for all builds.

export LC_ALL=C SOURCE_DATE_EPOCH=1735689600
export PATH="$PATH:/usr/sbin:/sbin"
packages=
sources=
out=
versions=
kernel_package=
release=
busybox=
work=

say() { echo "$what: $*" >&2; }
fail() { say "$*"; exit 1; }
hash_of() { sha256sum | cut -c1-12; }

# needs TOOL...: and Debian
needs() {
  local tool
  [ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || fail 'is built from Debian amd64 packages, on Debian amd64 only'
  for tool in strip readelf lz4 cpio flock "$@"; do
    command -v "$tool" >/dev/null || fail "needs $tool: run scripts/setup"
  done
}

# Two builds at once must not disturb each other. The second one finds what the first one built.
lock_cache() {
  packages=$(realpath -m "$cache/../debian-packages")
  mkdir -p "$cache" "$packages"
  exec 9>"$cache/lock"
  flock -w 300 9 || fail "another build holds $cache/lock"
}

# Asking apt takes seconds where it has to parse its lists anew, so the answer is kept for as long as the lists are the same.
list_state() {
  { echo "$wanted"; stat -c '%n %s %Y' /var/lib/apt/lists /var/lib/apt/lists/*_Packages* 2>/dev/null; } | hash_of
}
resolve_packages() { # fills versions ("name version" lines) and kernel_package
  local answer kernel libraries name
  answer=$cache/versions-$(list_state)
  if [ ! -s "$answer" ]; then
    kernel=$(apt-cache depends --important linux-image-cloud-amd64 2>/dev/null |
      sed -n 's/^ *Depends: \(linux-image-[0-9]\)/\1/p' | head -n 1)
    [ -n "$kernel" ] || return 1
    libraries=$(apt-cache depends --recurse --important $wanted |
      sed -n 's/^\(z\?lib[a-z0-9.+-]*\)$/\1/p' | grep -v -- '-perl$')
    apt-cache show --no-all-versions "$kernel" $wanted $libraries 2>/dev/null |
      awk '$1 == "Package:" { name = $2 } $1 == "Version:" { print name, $2 }' | sort -u >"$answer.new"
    for name in $wanted; do grep -q "^$name " "$answer.new" || return 1; done
    rm -f "$cache"/versions-*[0-9a-f]
    mv "$answer.new" "$answer"
  fi
  versions=$(cat "$answer")
  kernel_package=$(sed -n 's/^\(linux-image-[0-9][^ ]*\) .*/\1/p' <<<"$versions")
}
update_lists() {
  [ "$(id -u)" = 0 ] || return 1
  say 'updates the package lists'
  apt-get -q update -o Acquire::Retries=2 -o Acquire::http::Timeout=30 >&2 </dev/null
}

# The directory of a build is named after the caller's `sources` and the versions of the packages.
name_out() { out=$cache/$sources-$(hash_of <<<"$versions"); }
# Into `out`; ends the shell with the answer when the build is there already.
choose_out() {
  local newest
  if ! resolve_packages && ! { update_lists && resolve_packages; }; then
    newest=$(ls -dt "$cache/$sources"-* 2>/dev/null | head -n 1) # offline: what these sources gave last time
    [ -n "$newest" ] || fail 'apt does not know the packages: run apt-get update'
    echo "$newest"
    exit 0
  fi
  name_out
  [ -e "$out/complete" ] || return 0
  echo "$out"
  exit 0
}
# The images take their place, and their directory is the answer.
keep_images() {
  echo "$kernel_package" >"$work/images/complete"
  rm -rf "$out"
  mv "$work/images" "$out"
  say "built in $(($(date +%s) - started)) s"
  echo "$out"
}

package_file() { echo "$packages/$1_$(sed -n "s/^$1 //p" <<<"$versions" | sed 's/:/%3a/g')_"*.deb; }
download_packages() {
  local missing=() name version
  while read -r name version; do [ -e "$(package_file "$name")" ] || missing+=("$name=$version"); done <<<"$versions"
  [ ${#missing[@]} = 0 ] && return
  say "downloads ${#missing[@]} Debian packages"
  (cd "$packages" && flock -w 300 8 &&
    apt-get -q download -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "${missing[@]}" >log 2>&1 </dev/null) \
    8>"$packages/lock"
}
# Stale lists name versions that the archive no longer has: then update once, and take what is offered now.
fetch_packages() {
  download_packages || { update_lists && resolve_packages && download_packages; } ||
    fail "can not download: $(tail -n 3 "$packages/log")"
}

unpack_packages() {
  local name
  work=$(mktemp -d "$cache/work.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir -p "$work"/{images,stage,kernel}
  while read -r name _; do
    [ "$name" = "$kernel_package" ] && continue
    dpkg-deb --fsys-tarfile "$(package_file "$name")" | tar -x -C "$work/stage" --exclude='./usr/share/*'
  done <<<"$versions"
  dpkg-deb --fsys-tarfile "$(package_file "$kernel_package")" | tar -x -C "$work/kernel" ./boot ./lib/modules
  release=${kernel_package#linux-image-}
  busybox=$work/stage/bin/busybox
  "$busybox" depmod -b "$work/kernel" "$release"
}

# Debian's bzImage holds an LZ4 vmlinux (magic 02214c18). Booted as an ELF file (PVH) the guest need not unpack it, which
# takes 0.7 s without KVM. A kernel packed in another way boots as it is.
extract_kernel() { # OUT
  local vmlinuz offset
  vmlinuz=$work/kernel/boot/vmlinuz-$release
  offset=$({ grep -abo $'\x02\x21\x4c\x18' "$vmlinuz" || true; } | head -n 1 | cut -d: -f1)
  # lz4 objects to the padding at the end
  [ -n "$offset" ] && tail -c +$((offset + 1)) "$vmlinuz" | lz4 -dc 2>/dev/null >"$work/vmlinux" || true
  strip -s -o "$1" "$work/vmlinux" 2>/dev/null || cp "$vmlinuz" "$1"
}

new_tree() { # TREE: directories, busybox and the loader
  local applet
  mkdir -p "$1"/{bin,sbin,lib/x86_64-linux-gnu,lib64,etc,proc,sys,dev,run,tmp,mnt}
  cp "$busybox" "$1/bin/busybox"
  for applet in $("$busybox" --list); do [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"; done
  ln -s ../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$1/lib64/ld-linux-x86-64.so.2"
}
add_modules() { # TREE MODULE...: copies modules and all they depend on
  local tree=$1 modules=$work/kernel/lib/modules/$release path
  shift
  awk -v wanted="$*" '
    function take(path, parts, i) { if (path in taken) return; taken[path] = 1; print path
      split(needs[path], parts, " "); for (i in parts) take(parts[i]) }
    { path = $1; sub(/:$/, "", path); sub(/^[^:]*: */, ""); needs[path] = $0
      name = path; sub(/.*\//, "", name); sub(/\.ko.*/, "", name); at[name] = path }
    END { split(wanted, names, " "); for (i in names) if (names[i] in at) take(at[names[i]]) }' "$modules/modules.dep" |
    while read -r path; do install -D -m 644 "$modules/$path" "$tree/lib/modules/$release/$path"; done
  cp "$modules"/modules.{builtin,order} "$tree/lib/modules/$release/"
  "$busybox" depmod -b "$tree" "$release"
}
add_programs() { # TREE PROGRAM...: copies dynamically linked programs and the libraries they need
  local tree=$1 name file
  shift
  for name in "$@"; do
    file=$({ find "$work"/stage/{sbin,usr/sbin,bin,usr/bin} -name "$name" 2>/dev/null || true; } | head -n 1)
    [ -n "$file" ] || fail "no package brings $name"
    rm -f "$tree/bin/$name" # busybox's smaller one
    install -D -m 755 "$file" "$tree/sbin/$name"
    strip --strip-unneeded "$tree/sbin/$name"
    add_libraries "$tree" "$tree/sbin/$name"
  done
}
add_libraries() { # TREE FILE
  local library file
  for library in $(readelf -d "$2" 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
    [ -e "$1/lib/x86_64-linux-gnu/$library" ] && continue
    file=$({ find "$work"/stage/{lib,usr/lib} -name "$library" 2>/dev/null || true; } | head -n 1)
    [ -n "$file" ] || fail "no package brings $library"
    install -D -m 755 "$(readlink -f "$file")" "$1/lib/x86_64-linux-gnu/$library"
    strip --strip-unneeded "$1/lib/x86_64-linux-gnu/$library"
    add_libraries "$1" "$file"
  done
}
# The archive stays unpacked: without KVM unpacking costs more than loading.
pack_initrd() { # TREE OUT
  chown -R 0:0 "$1" 2>/dev/null || true
  find "$1" -exec touch -h -d @$SOURCE_DATE_EPOCH {} +
  (cd "$1" && find . | sort | cpio --quiet -o -H newc --reproducible -R 0:0) >"$2"
}
