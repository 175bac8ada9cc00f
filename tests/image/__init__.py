"""The image, built and run without a container engine's daemon: `make image-test`.

`build` makes a Debian base with mmdebstrap and the image on it with buildah; the tests run it by
podman, beside a real Envoy, in a separate network namespace. All of it needs root.
"""
