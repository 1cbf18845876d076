# Makes an AMI with a baked BuildKit root: an instance booted from it prints CACHED.
#
#     packer init packer/plugins.pkr.hcl        # Packer 1.7 and newer
#     packer build \
#         -var region=eu-central-1 -var source_ami=ami-0123456789abcdef0 \
#         -var 'caches=["123456789012.dkr.ecr.eu-central-1.amazonaws.com/app:cache"]' \
#         -var 'keys=["123456789012.dkr.ecr.eu-central-1.amazonaws.com/app:1.4"]' \
#         -var iam_instance_profile=ecr-read -var warmkit_binary=target/release/warmkit \
#         packer/amazon-ebs.pkr.hcl
#
# The source AMI has BuildKit installed as a service that has not run yet, or Docker, whose builders
# keep their roots elsewhere (docs/procedure.md).

variable "region" {
  type        = string
  description = "Where the AMI is made, such as eu-central-1."
}

variable "source_ami" {
  type        = string
  description = "The AMI to start from. Its architecture is that of the builds."
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

variable "root" {
  type        = string
  default     = "/var/lib/buildkit"
  description = "The BuildKit root to make. It must be absent or empty."
}

variable "platform" {
  type        = string
  default     = ""
  description = "OS/ARCH[/VARIANT] of the builds. Empty: the instance's own."
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
  description = "A warmkit binary, for the instance's architecture, to upload. Empty: warmkit_url, or else the one in the source AMI."
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
  default     = true
  description = "Machines that boot from the image read the root once from their volume, so that builds do not wait for blocks of a snapshot (docs/hydrate.md)."
}

variable "docker_config" {
  type        = string
  default     = ""
  sensitive   = true
  description = "The text of a docker config.json with the registry's credentials. For ECR, give the instance a profile instead, and the source AMI docker-credential-ecr-login."
}

variable "instance_type" {
  type        = string
  default     = "m6i.large"
  description = "What bakes. It unpacks as fast as its cores, network and volume allow."
}

variable "iam_instance_profile" {
  type        = string
  default     = ""
  description = "An instance profile that may read the registry."
}

variable "subnet_id" {
  type        = string
  default     = ""
  description = "Where the instance runs. Empty: the default VPC."
}

variable "ssh_username" {
  type        = string
  default     = "ubuntu"
  description = "The source AMI's user; root, or allowed to sudo without a password."
}

variable "ami_name" {
  type        = string
  default     = "warmkit"
  description = "The AMI's name; the time is appended."
}

variable "volume_size" {
  type        = number
  default     = 50
  description = "GiB of the root volume: room for the layers twice, compressed and unpacked."
}

variable "volume_throughput" {
  type        = number
  default     = 500
  description = "MiB/s of the root volume while baking (gp3: 125 to 1000)."
}

variable "root_device" {
  type        = string
  default     = "/dev/sda1"
  description = "The source AMI's root device: /dev/sda1 for Debian and Ubuntu, /dev/xvda for Amazon Linux."
}

variable "encrypt" {
  type        = bool
  default     = true
  description = "Encrypt the AMI's snapshot."
}

locals {
  ami_name = "${var.ami_name}-${formatdate("YYYYMMDD-hhmmss", timestamp())}"
  uploads  = "/tmp/warmkit"
}

source "amazon-ebs" "warm" {
  region               = var.region
  source_ami           = var.source_ami
  instance_type        = var.instance_type
  iam_instance_profile = var.iam_instance_profile
  subnet_id            = var.subnet_id
  ssh_username         = var.ssh_username

  ami_name        = local.ami_name
  ami_description = "BuildKit root baked from ${join(", ", var.caches)}"
  encrypt_boot    = var.encrypt

  launch_block_device_mappings {
    device_name           = var.root_device
    volume_size           = var.volume_size
    volume_type           = "gp3"
    iops                  = 3000
    throughput            = var.volume_throughput
    delete_on_termination = true
  }

  tags = {
    Name         = local.ami_name
    source_ami   = var.source_ami
    warmkit_root = var.root
  }
}

build {
  sources = ["source.amazon-ebs.warm"]

  # cloud-init may still be installing packages, or starting services.
  provisioner "shell" {
    inline = [
      "! command -v cloud-init >/dev/null || cloud-init status --wait",
      "mkdir -m 0700 ${local.uploads}",
    ]
  }

  provisioner "file" {
    sources     = concat(compact([var.warmkit_binary]), var.files, ["${path.root}/provision.sh", "${path.root}/warmkit-hydrate.service", "${path.root}/warmkit-hydrate.timer"])
    destination = "${local.uploads}/"
  }

  provisioner "shell" {
    inline = ["bash ${local.uploads}/provision.sh"]

    environment_vars = [
      "WARMKIT_CACHES=${join("\n", var.caches)}",
      "WARMKIT_KEYS=${join("\n", var.keys)}",
      "WARMKIT_ROOT=${var.root}",
      "WARMKIT_PLATFORM=${var.platform}",
      "WARMKIT_ALLOW_UNKEYED=${var.allow_unkeyed}",
      "WARMKIT_READ_DATA=${var.read_data}",
      "WARMKIT_BINARY=${var.warmkit_binary == "" ? "" : "${local.uploads}/${basename(var.warmkit_binary)}"}",
      "WARMKIT_URL=${var.warmkit_url}",
      "WARMKIT_SHA256=${var.warmkit_sha256}",
      "WARMKIT_HYDRATE=${var.hydrate}",
      "WARMKIT_DOCKER_CONFIG=${var.docker_config}",
    ]

    # Settings go through a file, not through a command line that others can read, and one in memory:
    # what is deleted from a disk is still in a snapshot of it.
    use_env_var_file = true
    remote_folder    = "/dev/shm"
    execute_command  = ". '{{ .EnvVarFile }}' && $([ \"$(id -u)\" -eq 0 ] || echo sudo -n -E) bash '{{ .Path }}'"
  }

  # Nothing of the baking stays in the image but the root and warmkit itself.
  provisioner "shell" {
    inline = ["rm -rf ${local.uploads}"]
  }
}
