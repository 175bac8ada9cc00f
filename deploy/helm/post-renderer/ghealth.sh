#!/bin/sh
# Adds deploy/kustomize/ghealth-native and drain to what a chart renders: a Helm post-renderer, for
# charts that have no value for a sidecar. Needs kubectl or kustomize.
#
#   Helm 3:  helm upgrade … --post-renderer deploy/helm/post-renderer/ghealth.sh
#   Helm 4:  helm plugin install deploy/helm/post-renderer
#            helm upgrade … --post-renderer ghealth
set -eu

here=${HELM_PLUGIN_DIR:-$(dirname "$0")}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Kustomize accepts relative paths only, and Helm 4 installs a plugin as a link to its directory.
components=$(CDPATH='' cd -P -- "$here/../../kustomize" && pwd -P)
cp -R "$components/ghealth-native" "$components/drain" "$folder"
cat > "$folder/rendered.yaml"
cat > "$folder/kustomization.yaml" <<'KUSTOMIZATION'
resources: [rendered.yaml]
components: [ghealth-native, drain]
images:
  - name: registry.example.com/ghealth
    newName: registry.example.com/ghealth # yours
    digest: sha256:0000000000000000000000000000000000000000000000000000000000000000 # yours
KUSTOMIZATION
if command -v kustomize > /dev/null; then
    kustomize build "$folder"
else
    kubectl kustomize "$folder"
fi > "$folder/with-ghealth.yaml"
# A component skips what it does not select.
if ! grep --quiet 'name: ghealth$' "$folder/with-ghealth.yaml"; then
    echo "ghealth.sh: ghealth was not added: no Deployment has the label istio=ingressgateway or istio=ingress" >&2
    exit 1
fi
cat "$folder/with-ghealth.yaml"
