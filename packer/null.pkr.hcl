# Bakes on the machine that Packer itself runs on: for a host that is its own image (a disk that
# is snapshotted afterwards, a chroot), and for trying out the provisioning without a cloud.
# Registry credentials are root's own (~/.docker/config.json and its helpers).
#
#     packer build -var 'caches=["ghcr.io/acme/app:cache"]' -var 'keys=["ghcr.io/acme/app:1.4"]' packer/null.pkr.hcl

variable "caches" {
  type        = list(string)
  description = "Caches to bake, written as after `buildx build --cache-from`."

  validation {
    condition     = length(var.caches) > 0
    error_message = "The list of caches is empty: there is nothing to bake."
  }
}

variable "keys" {
  type        = list(string)
  default     = []
  description = "Where operation digests come from, written as after `warmkit bake --keys-from`."
}

variable "target" {
  type        = string
  default     = "host"
  description = "Whose root to make, as after `warmkit bake --for`: host is /var/lib/buildkit, buildx:NAME the volume of a builder. It must be absent or empty."

  validation {
    condition     = var.target == "host" || (substr(var.target, 0, 7) == "buildx:" && var.target != "buildx:")
    error_message = "The target is neither host nor buildx:NAME."
  }
}

variable "root" {
  type        = string
  default     = ""
  description = "The root to make, as a directory. Empty: target's."
}

variable "platform" {
  type        = string
  default     = ""
  description = "OS/ARCH[/VARIANT] of the builds. Empty: this machine's."
}

variable "allow_unkeyed" {
  type        = bool
  default     = false
  description = "Bake even if some records have no key."
}

variable "read_data" {
  type        = bool
  default     = false
  description = "Verify every file against its layer, too."
}

variable "context" {
  type        = string
  default     = ""
  description = "A tar of a build's context, on this machine. The build then runs on a throwaway view of the root, and Packer fails if a step is not CACHED."
}

variable "context_args" {
  type        = list(string)
  default     = []
  description = "The arguments of that build, as after `warmkit verify --build`, such as --build-arg=VERSION=1.4."
}

variable "warmkit_binary" {
  type        = string
  default     = ""
  description = "A warmkit binary or Debian package on this machine. Empty: warmkit_url, or else the installed one."
}

variable "warmkit_url" {
  type        = string
  default     = ""
  description = "Where to download warmkit."
}

variable "warmkit_sha256" {
  type        = string
  default     = ""
  description = "What the downloaded warmkit must hash to."
}

variable "bin_dir" {
  type        = string
  default     = "/usr/local/bin"
  description = "Where warmkit is installed."
}

source "null" "here" {
  communicator = "none"
}

build {
  sources = ["source.null.here"]

  provisioner "shell-local" {
    script = "${path.root}/provision.sh"

    environment_vars = [
      "WARMKIT_CACHES=${join("\n", var.caches)}",
      "WARMKIT_KEYS=${join("\n", var.keys)}",
      "WARMKIT_FOR=${var.root == "" ? var.target : ""}",
      "WARMKIT_ROOT=${var.root}",
      "WARMKIT_PLATFORM=${var.platform}",
      "WARMKIT_ALLOW_UNKEYED=${var.allow_unkeyed}",
      "WARMKIT_READ_DATA=${var.read_data}",
      "WARMKIT_BINARY=${var.warmkit_binary}",
      "WARMKIT_URL=${var.warmkit_url}",
      "WARMKIT_SHA256=${var.warmkit_sha256}",
      "WARMKIT_BIN_DIR=${var.bin_dir}",
      "WARMKIT_CONTEXT=${var.context}",
      "WARMKIT_CONTEXT_ARGS=${join("\n", var.context_args)}",
    ]

    execute_command = [
      "/bin/sh", "-c",
      "$([ \"$(id -u)\" -eq 0 ] || echo sudo -n) env {{ .Vars }} bash '{{ .Script }}'",
    ]
  }
}
