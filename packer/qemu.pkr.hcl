# Bakes into a disk image: a machine booted from it, a virtual one or one that it is written to, prints CACHED.
#
#     packer init packer/plugins.pkr.hcl        # Packer 1.7 and newer
#     packer build \
#         -var image=debian-12-build.qcow2 -var image_checksum=sha256:… -var enable=buildkit.service \
#         -var ssh_private_key_file=$HOME/.ssh/id_ed25519 -var "ssh_public_key=$(cat ~/.ssh/id_ed25519.pub)" \
#         -var 'caches=["ghcr.io/acme/app:cache"]' -var 'keys=["ghcr.io/acme/app:1.4"]' \
#         -var warmkit_binary=target/release/warmkit \
#         packer/qemu.pkr.hcl
#
# packer/README.md says what the image to start from must have.

variable "image" {
  type        = string
  description = "The disk image to start from, a file or URL; it stays as it is. Its architecture is that of the builds."
}

variable "image_checksum" {
  type        = string
  description = "What it must hash to, such as sha256:…, file:<URL of SHA512SUMS>, or none."
}

variable "output" {
  type        = string
  default     = "warm"
  description = "The directory to make, with warm.qcow2 in it. It must be absent."
}

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

variable "files" {
  type        = list(string)
  default     = []
  description = "Files to upload to /tmp/warmkit, where keys can name them: type=provenance,src=/tmp/warmkit/metadata.json."
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
  description = "OS/ARCH[/VARIANT] of the builds. Empty: the machine's own."
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

variable "warmkit_binary" {
  type        = string
  default     = ""
  description = "A warmkit binary or Debian package, for the machine's architecture, to upload. Empty: warmkit_url, or else the one in the image."
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

variable "hydrate" {
  type        = bool
  default     = false
  description = "Machines that boot from the image read the root once from their volume, so that builds do not wait for blocks of a snapshot (docs/hydrate.md)."
}

variable "docker_config" {
  type        = string
  default     = ""
  sensitive   = true
  description = "The text of a docker config.json with the registry's credentials."
}

variable "enable" {
  type        = string
  default     = ""
  description = "The unit that starts BuildKit, enabled once the root is baked. Empty: none is."
}

variable "context" {
  type        = string
  default     = ""
  description = "A tar of a build's context, on this machine. The build then runs on a throwaway view of the root, and there is no image if a step is not CACHED."
}

variable "context_args" {
  type        = list(string)
  default     = []
  description = "The arguments of that build, as after `warmkit verify --build`, such as --build-arg=VERSION=1.4."
}

variable "ssh_username" {
  type        = string
  default     = "root"
  description = "Who logs in: root, or a user allowed to sudo without a password."
}

variable "ssh_private_key_file" {
  type        = string
  description = "Logs in. It stays on this machine."
}

variable "ssh_public_key" {
  type        = string
  default     = ""
  description = "Given to root of the machine as a systemd credential (systemd 252 and newer). Empty: the image, or its seed, knows the key."
}

variable "seed" {
  type        = string
  default     = ""
  description = "A directory with cloud-init's user-data and meta-data, for an image that has cloud-init. Empty: none."
}

variable "accelerator" {
  type        = string
  default     = "kvm"
  description = "kvm, or tcg to emulate, which takes some ten times as long."
}

variable "cpu" {
  type        = string
  default     = "host"
  description = "The processor. With tcg: max,la57=off."
}

variable "cpus" {
  type        = number
  default     = 2
  description = "How many. It unpacks as fast as they do."
}

variable "memory" {
  type        = number
  default     = 2048
  description = "MiB."
}

variable "disk_size" {
  type        = string
  default     = ""
  description = "Size of the new disk, such as 50G: room for the layers twice, compressed and unpacked. Larger than the image only helps one that grows its file system. Empty: the image's own."
}

locals {
  uploads = "/tmp/warmkit"
  scripts = ["provision.sh", "seal.sh", "warmkit-hydrate.service", "warmkit-hydrate.timer"]
  sudo    = "$([ \"$(id -u)\" -eq 0 ] || echo sudo -n -E)"
}

source "qemu" "warm" {
  iso_url          = var.image
  iso_checksum     = var.image_checksum
  disk_image       = true
  skip_resize_disk = var.disk_size == ""
  disk_size        = var.disk_size == "" ? "1G" : var.disk_size
  format           = "qcow2"
  disk_interface   = "virtio"
  disk_discard     = "unmap"
  disk_cache       = "unsafe" # Of a build that is cut off, nothing is worth keeping.
  output_directory = var.output
  vm_name          = "warm.qcow2"

  accelerator    = var.accelerator
  cpus           = var.cpus
  memory         = var.memory
  headless       = true
  boot_wait      = "0s"
  disable_vnc    = true
  http_directory = var.seed
  # The machine sees this one's loopback; nobody else needs the seed.
  http_bind_address = "127.0.0.1"

  # The machine is reached from this one alone.
  qemuargs = concat(
    [
      ["-cpu", var.cpu],
      ["-netdev", "user,id=user.0,hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22"],
    ],
    [for key in compact([var.ssh_public_key]) :
    ["-smbios", "type=11,value=io.systemd.credential.binary:ssh.authorized_keys.root=${base64encode(key)}"]],
    [for seed in compact([var.seed]) :
    ["-smbios", "type=1,serial=ds=nocloud-net;s=http://{{ .HTTPIP }}:{{ .HTTPPort }}/"]],
  )

  ssh_username         = var.ssh_username
  ssh_private_key_file = var.ssh_private_key_file
  ssh_timeout          = "15m"

  shutdown_command = "${local.sudo} systemctl poweroff"
  shutdown_timeout = "10m"
}

build {
  sources = ["source.qemu.warm"]

  # cloud-init may still be installing packages, or starting services. 2: it is done, and has complaints.
  provisioner "shell" {
    inline = [
      "! command -v cloud-init >/dev/null || cloud-init status --wait --long || [ $? -eq 2 ]",
      "mkdir -m 0700 ${local.uploads}",
    ]
  }

  provisioner "file" {
    sources     = concat(compact([var.warmkit_binary, var.context]), var.files, [for name in local.scripts : "${path.root}/${name}"])
    destination = "${local.uploads}/"
  }

  provisioner "shell" {
    inline = ["bash ${local.uploads}/provision.sh"]

    environment_vars = [
      "WARMKIT_CACHES=${join("\n", var.caches)}",
      "WARMKIT_KEYS=${join("\n", var.keys)}",
      "WARMKIT_FOR=${var.root == "" ? var.target : ""}",
      "WARMKIT_ROOT=${var.root}",
      "WARMKIT_PLATFORM=${var.platform}",
      "WARMKIT_ALLOW_UNKEYED=${var.allow_unkeyed}",
      "WARMKIT_READ_DATA=${var.read_data}",
      "WARMKIT_BINARY=${var.warmkit_binary == "" ? "" : "${local.uploads}/${basename(var.warmkit_binary)}"}",
      "WARMKIT_URL=${var.warmkit_url}",
      "WARMKIT_SHA256=${var.warmkit_sha256}",
      "WARMKIT_HYDRATE=${var.hydrate}",
      "WARMKIT_DOCKER_CONFIG=${var.docker_config}",
      "WARMKIT_CONTEXT=${var.context == "" ? "" : "${local.uploads}/${basename(var.context)}"}",
      "WARMKIT_CONTEXT_ARGS=${join("\n", var.context_args)}",
      "WARMKIT_ENABLE=${var.enable}",
    ]

    # Settings go through a file, not through a command line that others can read, and one in memory:
    # what is deleted from a disk is still in an image of it.
    use_env_var_file = true
    remote_folder    = "/dev/shm"
    execute_command  = ". '{{ .EnvVarFile }}' && ${local.sudo} bash '{{ .Path }}'"
  }

  # Nothing of the baking stays in the image but the root and warmkit itself, and nothing of this machine.
  provisioner "shell" {
    inline = ["${local.sudo} bash ${local.uploads}/seal.sh"]

    environment_vars = [
      "WARMKIT_FOR=${var.root == "" ? var.target : ""}",
      "WARMKIT_ROOT=${var.root}",
    ]
  }
}
