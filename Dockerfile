# The container that the action runs in: rechunk-action and the programs that it calls, as one layer.
#
# Debian is named without a digest: what is released is pinned by its own, and a build of one's own gets the security
# updates of its day.

FROM debian:trixie-slim AS python
# hadolint ignore=DL3008
RUN apt-get update -q \
    && apt-get install -q -y --no-install-recommends binutils python3-pip python3-venv
WORKDIR /package
COPY requirements requirements
# Where a proxy signs what it hands on, pip needs the authorities that the runner trusts: they are the secret.
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    for name in build run; do \
        python3 -m venv --without-pip "/opt/$name" \
        && pip --python "/opt/$name/bin/python" install --quiet --no-cache-dir --only-binary :all: \
            --require-hashes --requirement "requirements/$name.txt" \
        || exit; \
    done
COPY . .
# Debug symbols are half of what wheels unpack to; zstandard uses its cffi module on PyPy alone.
RUN /opt/build/bin/hatchling build --target wheel --directory /wheel \
    && pip --python /opt/run/bin/python install --quiet --no-cache-dir --no-index --no-deps /wheel/*.whl \
    && rm /opt/run/lib/python3*/site-packages/zstandard/_cffi.*.so \
    && find /opt/run -name '*.so' -exec strip --strip-unneeded {} +

FROM debian:trixie-slim AS system
# podman mounts images here and starts nothing: it wants no networks, and only asks whether netavark is there. Of the
# tools for BTRFS, one is called.
# hadolint ignore=DL3008
RUN printf 'path-exclude=%s\n' \
        '/usr/lib/*/*.a' '/usr/lib/cni/*' '/usr/lib/file/*' '/usr/lib/podman/*' '/usr/libexec/podman/*' \
        '/usr/bin/btrfs*' '/usr/sbin/fsck.btrfs' '/usr/lib/udev/*' '/usr/share/initramfs-tools/*' \
        >/etc/dpkg/dpkg.cfg.d/unneeded \
    && apt-get update -q \
    && apt-get install -q -y --no-install-recommends btrfs-progs ca-certificates mount podman python3 rpm skopeo \
    && dpkg --purge --force-depends --force-remove-essential apt iptables perl-base sqv \
    && rm -rf /usr/share/doc /usr/share/info /usr/share/locale /usr/share/man /var/cache/* /var/lib/apt /var/log/* \
    && ln -s /usr/bin/false /usr/lib/podman/netavark
# The runner's storage is bound to /storage and never written to; what podman writes itself is in memory.
RUN printf '%s\n' '[storage]' 'driver = "overlay"' 'graphroot = "/run/podman/images"' 'runroot = "/run/podman/run"' \
        '[storage.options]' 'additionalimagestores = ["/storage"]' >/etc/containers/storage.conf \
    && printf '%s\n' '[engine]' 'events_logger = "none"' >/etc/containers/containers.conf
COPY --from=python /opt/run /opt/run

# One layer, in which nothing is that was removed.
FROM scratch
# hadolint ignore=DL3067
COPY --from=system / /
# pip's authorities are Mozilla's of some day; all programs here use the same, those of the system.
ENV PATH=/opt/run/bin:/usr/bin:/usr/sbin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt \
    PODMAN_IGNORE_CGROUPSV1_WARNING=1
ENTRYPOINT ["rechunk-action"]
