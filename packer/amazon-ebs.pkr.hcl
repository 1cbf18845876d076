# Makes an AMI with a baked BuildKit root: instances that boot from it print CACHED in their first build.
#
#     packer init packer/plugins.pkr.hcl        # Packer 1.7 and newer
#     packer build \
#         -var region=eu-central-1 -var source_ami=ami-0123456789abcdef0 -var enable=buildkit.service \
#         -var 'caches=["123456789012.dkr.ecr.eu-central-1.amazonaws.com/app:cache"]' \
#         -var 'keys=["123456789012.dkr.ecr.eu-central-1.amazonaws.com/app:1.4"]' \
#         -var iam_instance_profile=ecr-read -var warmkit_binary=target/release/warmkit \
#         packer/amazon-ebs.pkr.hcl
#
# packer/README.md says what the AMI to start from must have, and what Packer may have to do in AWS.

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
  description = "A warmkit binary or Debian package, for the instance's architecture, to upload. Empty: warmkit_url, or else the one in the source AMI."
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
  description = "The text of a docker config.json with the registry's credentials. For ECR, give the instance a profile instead."
}

variable "enable" {
  type        = string
  default     = ""
  description = "The unit that starts BuildKit, enabled once the root is baked. Empty: none is."
}

variable "context" {
  type        = string
  default     = ""
  description = "A tar of a build's context, on this machine. The build then runs on a throwaway view of the root, and there is no AMI if a step is not CACHED."
}

variable "context_args" {
  type        = list(string)
  default     = []
  description = "The arguments of that build, as after `warmkit verify --build`, such as --build-arg=VERSION=1.4."
}

variable "instance_type" {
  type        = string
  default     = "m6i.large"
  description = "What bakes. It unpacks as fast as its cores, network and volume allow."
}

variable "iam_instance_profile" {
  type        = string
  default     = ""
  description = "An instance profile that may read the registry, such as one with AmazonEC2ContainerRegistryReadOnly."
}

variable "subnet_id" {
  type        = string
  default     = ""
  description = "Where the instance runs. Empty: the default VPC."
}

variable "ssh_username" {
  type        = string
  default     = "ubuntu"
  description = "The source AMI's user (Debian: admin, Amazon Linux: ec2-user): root, or allowed to sudo without a password."
}

variable "ssh_interface" {
  type        = string
  default     = ""
  description = "How the instance is reached: public_ip, private_ip, session_manager. Empty: the public address, if it has one."
}

variable "ssh_from" {
  type        = list(string)
  default     = ["0.0.0.0/0"]
  description = "The networks that reach the instance's ssh while it bakes."
}

variable "ssh_private_key_file" {
  type        = string
  default     = ""
  description = "Logs in, with the key pair ssh_keypair_name. Empty: a key pair that is there for this build only."
}

variable "ssh_keypair_name" {
  type        = string
  default     = ""
  description = "The key pair of ssh_private_key_file in EC2."
}

variable "ami_name" {
  type        = string
  default     = "warmkit"
  description = "The AMI's name; the time is appended."
}

variable "volume_size" {
  type        = number
  default     = 50
  description = "GiB of the root volume: room for the layers twice, compressed and unpacked. Volumes made from the AMI are no smaller."
}

variable "volume_type" {
  type        = string
  default     = "gp3"
  description = "Type of the root volume. Those made from the AMI are like it, unless a launch template says otherwise."
}

variable "volume_iops" {
  type        = number
  default     = 3000
  description = "IOPS of the root volume: for gp3 (3000 to 16000), io1 and io2."
}

variable "volume_throughput" {
  type        = number
  default     = 500
  description = "MiB/s of the root volume: for gp3 (125 to 1000)."
}

variable "root_device" {
  type        = string
  default     = "/dev/sda1"
  description = "The source AMI's root device: /dev/sda1 for Ubuntu, /dev/xvda for Debian and Amazon Linux."
}

variable "encrypt" {
  type        = bool
  default     = true
  description = "Encrypt the volume from the start, and so the AMI's snapshot, which is then not copied for it."
}

variable "kms_key_id" {
  type        = string
  default     = ""
  description = "The key that encrypts the volume. Empty: the account's own for EBS, which no other account can use."
}

variable "tags" {
  type        = map(string)
  default     = {}
  description = "Tags of the AMI and its snapshot, and of the instance and its volume."
}

locals {
  ami_name = "${var.ami_name}-${formatdate("YYYYMMDD-hhmmss", timestamp())}"
  tags     = merge({ Name = local.ami_name, source_ami = var.source_ami }, var.tags)
  uploads  = "/tmp/warmkit"
  scripts  = ["provision.sh", "seal.sh", "warmkit-hydrate.service", "warmkit-hydrate.timer"]
  sudo     = "$([ \"$(id -u)\" -eq 0 ] || echo sudo -n -E)"
}

source "amazon-ebs" "warm" {
  region               = var.region
  source_ami           = var.source_ami
  instance_type        = var.instance_type
  iam_instance_profile = var.iam_instance_profile
  subnet_id            = var.subnet_id
  ebs_optimized        = true

  # IMDSv2 alone, for this instance and for those that boot from the AMI. Packer 1.6 does not know these
  # lines; in all others take the # away.
  # metadata_options {
  #   http_tokens = "required"
  # }
  # imds_support = "v2.0"

  ssh_username                          = var.ssh_username
  ssh_interface                         = var.ssh_interface
  ssh_private_key_file                  = var.ssh_private_key_file
  ssh_keypair_name                      = var.ssh_keypair_name
  temporary_key_pair_type               = "ed25519"
  temporary_security_group_source_cidrs = var.ssh_from

  ami_name        = local.ami_name
  ami_description = "BuildKit root baked from ${join(", ", var.caches)}"

  launch_block_device_mappings {
    device_name           = var.root_device
    volume_size           = var.volume_size
    volume_type           = var.volume_type
    iops                  = contains(["gp3", "io1", "io2"], var.volume_type) ? var.volume_iops : null
    throughput            = var.volume_type == "gp3" ? var.volume_throughput : null
    encrypted             = var.encrypt || var.kms_key_id != "" ? true : null
    kms_key_id            = var.kms_key_id
    delete_on_termination = true
  }

  # The first snapshot of a volume of 50 GiB can take longer than the ten minutes that Packer waits by itself.
  aws_polling {
    delay_seconds = 15
    max_attempts  = 240
  }

  tags            = local.tags
  snapshot_tags   = local.tags
  run_tags        = local.tags
  run_volume_tags = local.tags
}

build {
  sources = ["source.amazon-ebs.warm"]

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
    # what is deleted from a disk is still in a snapshot of it.
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
