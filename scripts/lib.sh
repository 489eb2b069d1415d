# Set-up of a fresh Debian machine, sourced by the other scripts. Everything is found by looking for it, so that a
# machine on which something was installed by hand and a new one are treated alike.

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Whether one of the folders holds the C library of clang; libclang-cpp, which other packages bring, is not it.
libclang_in() {
    [ -n "$(find "$@" -maxdepth 1 -name 'libclang*.so*' ! -name 'libclang-cpp*' -print -quit 2>/dev/null)" ]
}

# Whether bindgen will find a libclang.
have_libclang() {
    if [ -n "${LIBCLANG_PATH:-}" ]; then
        libclang_in "$LIBCLANG_PATH"
        return
    fi
    if ldconfig -p 2>/dev/null | grep -q 'libclang[-.0-9]*\.so'; then return 0; fi
    libclang_in /usr/lib/llvm-*/lib
}

# A C header that bindgen reads; without it libclang alone is of no use.
have_libc_headers() { [ -e /usr/include/stdlib.h ]; }

have() { command -v "$1" >/dev/null 2>&1; }

# Debian packages that this machine lacks.
missing_packages() {
    have cc || echo build-essential
    have_libc_headers || echo libc6-dev
    have_libclang || echo libclang-dev
    have pkg-config || echo pkg-config
    have python3 || echo python3
    { have python3 && python3 -m pip --version >/dev/null 2>&1; } || echo python3-pip
    have dpkg || echo dpkg
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || echo debian-archive-keyring
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
}

# Installs what is missing. Needs root only then.
ensure_tools() {
    local missing sudo=
    missing=$(missing_packages | tr '\n' ' ')
    if [ -n "$missing" ]; then
        have apt-get || die "missing: $missing; this machine has no apt-get, install them by its own means"
        if [ "$(id -u)" != 0 ]; then
            have sudo || die "missing: $missing; run as root: apt-get install $missing"
            sudo=sudo
        fi
        say "installing $missing"
        local attempt
        for attempt in 1 2 3; do
            # shellcheck disable=SC2086
            if $sudo apt-get -q update >/dev/null && $sudo env DEBIAN_FRONTEND=noninteractive \
                apt-get -q install -y --no-install-recommends $missing >/dev/null; then
                break
            fi
            [ "$attempt" = 3 ] && die "apt-get cannot install: $missing"
            sleep $((attempt * 5))
        done
        missing=$(missing_packages | tr '\n' ' ')
        [ -z "$missing" ] || die "still missing after the installation: $missing"
    fi
    ensure_cargo
}

# Rust is not installed from here: which toolchain a machine has is its owner's choice.
ensure_cargo() {
    if ! have cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
        export PATH
    fi
    have cargo || die "cargo is missing: install Rust 1.88 or later with rustup (minimal profile, with the components
rustfmt and clippy), or Debian's packages cargo, rustfmt and rust-clippy where they are new enough"
    cargo fmt --version >/dev/null 2>&1 || die "cargo fmt is missing: rustup component add rustfmt"
    cargo clippy --version >/dev/null 2>&1 || die "cargo clippy is missing: rustup component add clippy"
}
