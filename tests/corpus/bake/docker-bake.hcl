variable "REGISTRY" {}
variable "BASE_IMAGE" {}

group "default" {
  targets = ["service"]
}

target "_common" {
  context = "."
  attest  = ["type=provenance,mode=max"]
}

target "base" {
  inherits = ["_common"]
  args     = { BASE = BASE_IMAGE }
}

target "service" {
  inherits   = ["_common"]
  name       = "service-${name}"
  matrix     = { name = ["api", "worker"] }
  dockerfile = "Dockerfile.service"
  contexts = {
    base  = "target:base"
    tools = "docker-image://${BASE_IMAGE}"
  }
  args     = { SERVICE = name }
  tags     = ["${REGISTRY}/bake:${name}"]
  cache-to = ["type=registry,ref=${REGISTRY}/bake:cache-${name},mode=max,image-manifest=true,oci-mediatypes=true"]
  output   = ["type=registry"]
}
