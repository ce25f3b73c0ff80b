# Set-up shared by demo and test: Debian packages (as root), virtual environment, build. Sourced with `top` set to the checkout.

PACKAGES_BUILD="gcc python3-dev python3-venv"
PACKAGES_RUN="iputils-ping curl hping3 iproute2 tcpdump nmap procps util-linux net-tools"

have_package() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q "ok installed"; }

# install_packages NAME...: what is missing, as root; otherwise says so and goes on.
install_packages() {
  command -v dpkg-query >/dev/null || return 0
  local missing=() p
  for p in "$@"; do
    case $p in
      gcc) command -v gcc >/dev/null && continue ;;
      python3-dev) python3 -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' \
        2>/dev/null && continue ;;
      python3-venv) python3 -c 'import ensurepip, venv' 2>/dev/null && continue ;;
    esac
    have_package "$p" || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ]; then
    echo "missing Debian packages (install them as root for the full run): ${missing[*]}"
    return 0
  fi
  echo "installing ${missing[*]}"
  apt-get update -qq >/dev/null 2>&1 || true
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# make_venv EXTRAS: .venv with the project installed editable; rebuilt when sources are newer than the build.
make_venv() {
  local python=${PYTHON:-python3} stamp=$top/.venv/.ustack-installed
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed" >&2; exit 3; }
  [ -x "$top/.venv/bin/python" ] || "$python" -m venv "$top/.venv"
  if [ ! -e "$stamp" ] || [ "$top/pyproject.toml" -nt "$stamp" ]; then
    "$top/.venv/bin/pip" install -q --disable-pip-version-check "setuptools>=77" "Cython~=3.3" wheel
    (cd "$top" && USTACK_CTEST= "$top/.venv/bin/pip" install -q --disable-pip-version-check --no-build-isolation -e ".[$1]")
    touch "$stamp"
  fi
}

# build: the compiled units in place, if a source is newer.
build() {
  local so
  so=$(ls "$top"/ustack/_fastpath*.so 2>/dev/null | head -1 || true)
  if [ -z "$so" ] || [ -n "$(find "$top/ustack" "$top/tests" "$top/setup.py" \( -name '*.py[xi]' -o -name '*.p[x][di]' -o -name setup.py \) -newer "$so" -print -quit)" ] ||
    { [ -n "${USTACK_CTEST:-}" ] && ! ls "$top"/tests/_ctest*.so >/dev/null 2>&1; } ||
    { [ -n "${USTACK_BENCH:-}" ] && ! ls "$top"/tests/_cbench*.so >/dev/null 2>&1; }; then
    (cd "$top" && .venv/bin/python setup.py -q build_ext --inplace -j 2)
  fi
}
