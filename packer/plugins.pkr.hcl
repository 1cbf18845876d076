# For Packer 1.7 and newer, which takes its builders from plugins:
#
#     packer init packer/plugins.pkr.hcl
#
# A file of its own, since Packer 1.6 (Debian's) has them built in and does not know this block.

packer {
  required_version = ">= 1.7.0"

  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.2.0, < 2.0.0"
    }
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.0.0, < 2.0.0"
    }
  }
}
