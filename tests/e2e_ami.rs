//! `packer build packer/amazon-ebs.pkr.hcl`, all of it: Debian's Packer makes an AMI in moto's EC2, of an instance
//! that a Debian in namespaces stands in for. EC2 is moto's word; ssh, the scripts, the bake, the first
//! build and what is left in the image are real.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use support::command::{Ended, run};
use support::demo::{self, demo};
use support::files::copy_tree;
use support::instance::{Instance, USER};
use support::machine::Emulator;
use support::moto::{Moto, REGION, texts};
use support::packer::{TEMPLATES, list, packer, run_packer_with, tar_of};
use support::registry::secret;
use support::{Registry, Scratch, Tools, tools};

/// All that a build needs.
struct Cloud {
    packer: PathBuf,
    emulator: Emulator,
    moto: Arc<Moto>,
    registry: Registry,
    scratch: Scratch,
    source_ami: String,
}

/// What EC2 says of an instance at the time of its first login, and of its volume.
type Told = Arc<Mutex<(String, String)>>;

impl Cloud {
    /// `None` where something is missing, after it said so.
    #[track_caller]
    fn find() -> Option<Self> {
        let (packer, tools, emulator) = (packer()?, Tools::find(tools::NEWEST)?, Emulator::find()?);
        let moto = Arc::new(Moto::start_open()?);
        let registry = Registry::start_with_password(&tools);
        demo::push(&registry);
        let profile = ("InstanceProfileName", "ecr-read");
        moto.iam(&[("Action", "CreateInstanceProfile"), profile]);
        let ubuntu = [("Filter.1.Name", "name"), ("Filter.1.Value.1", "ubuntu/*")];
        let images = moto.ec2(&[&[("Action", "DescribeImages")], &ubuntu[..]].concat());
        let source_ami = texts(&images, "imageId").remove(0);
        Some(Self { packer, emulator, moto, registry, scratch: Scratch::new(), source_ami })
    }

    /// Boots an instance, which lets the key pair in that EC2 gave it, as cloud-init has it.
    fn boot(&self) -> (Instance, Told) {
        let told = Told::default();
        let (moto, writes) = (Arc::clone(&self.moto), Arc::clone(&told));
        let instance = Instance::boot(&self.emulator, move || {
            let instance = moto.ec2(&[
                ("Action", "DescribeInstances"),
                ("Filter.1.Name", "instance-state-name"),
                ("Filter.1.Value.1", "running"),
            ]);
            let volumes = moto.ec2(&[("Action", "DescribeVolumes")]);
            let pair = texts(&instance, "keyName").remove(0);
            let pair = moto.ec2(&[
                ("Action", "DescribeKeyPairs"),
                ("KeyName.1", &pair),
                ("IncludePublicKey", "true"),
            ]);
            *writes.lock().unwrap() = (instance, volumes);
            texts(&pair, "publicKey").remove(0)
        });
        (instance, told)
    }

    /// Runs Packer on the template, with the endpoints in it that stand in for AWS's.
    #[track_caller]
    fn build(&self, instance: &Instance, variables: &[(&str, &str)]) -> Ended {
        let templates = self.scratch.join("packer");
        copy_tree(Path::new(TEMPLATES), &templates);
        let template = templates.join("amazon-ebs.pkr.hcl");
        let source = "source \"amazon-ebs\" \"warm\" {\n";
        let (before, after) = fs::read_to_string(&template)
            .unwrap()
            .split_once(source)
            .map(|(before, after)| (before.to_owned(), after.to_owned()))
            .unwrap();
        let here = format!(
            "  custom_endpoint_ec2 = \"{}\"\n  ssh_host = \"127.0.0.1\"\n  ssh_port = {}\n",
            self.moto.url(),
            instance.port
        );
        fs::write(&template, [&before, source, &here, &after].concat()).unwrap();

        let config = fs::read_to_string(self.registry.docker_config().join("config.json")).unwrap();
        let caches = list(&[&self.registry.reference("demo", "cache")]);
        let files = list(&[demo("provenance.json").to_str().unwrap()]);
        let keys = list(&["type=provenance,src=/tmp/warmkit/provenance.json"]);
        let common = [
            ("region", REGION),
            ("source_ami", &self.source_ami),
            ("iam_instance_profile", "ecr-read"),
            ("ssh_username", USER),
            ("docker_config", &config),
            ("caches", &caches),
            ("keys", &keys),
            ("files", &files),
            ("enable", "buildkit.service"),
            ("read_data", "true"),
        ];
        let environment = [("AWS_ACCESS_KEY_ID", "any"), ("AWS_SECRET_ACCESS_KEY", "any")];
        let variables = [&common[..], variables].concat();
        run_packer_with(&self.packer, "build", &template, &variables, &environment, Duration::from_secs(300))
    }

    /// A warmkit without what debuggers need, which would take longer to upload than the bake takes.
    fn binary(&self) -> String {
        let warmkit = self.scratch.join("warmkit");
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(&warmkit).arg(env!("CARGO_BIN_EXE_warmkit"));
        run(&mut strip, Duration::from_secs(60)).expect_success("strip");
        warmkit.to_str().unwrap().to_owned()
    }

    /// The same as a Debian package.
    fn package(&self) -> String {
        let control = "Package: warmkit\nVersion: 0\nArchitecture: amd64\nMaintainer: none\nDescription: of this test\n";
        self.scratch.write("root/DEBIAN/control", control);
        fs::create_dir_all(self.scratch.join("root/usr/bin")).unwrap();
        fs::rename(self.binary(), self.scratch.join("root/usr/bin/warmkit")).unwrap();
        let package = self.scratch.join("warmkit.deb");
        let mut build = Command::new("dpkg-deb");
        build.args(["--root-owner-group", "-Znone", "--build"]).arg(self.scratch.join("root")).arg(&package);
        run(&mut build, Duration::from_secs(60)).expect_success("dpkg-deb");
        package.to_str().unwrap().to_owned()
    }

    /// A tar of the demo's context, in which `change` may change something.
    fn context(&self, change: impl FnOnce(&Path)) -> String {
        let context = demo::context(&self.scratch);
        change(&context);
        tar_of(&context, &self.scratch)
    }

    /// The AMIs that were made: their ids.
    fn amis(&self) -> Vec<String> {
        let made = [("Filter.1.Name", "name"), ("Filter.1.Value.1", "warmkit-*")];
        let images = self.moto.ec2(&[&[("Action", "DescribeImages")], &made[..]].concat());
        texts(&images, "imageId")
    }

    /// Asserts that nothing is left running, and no key and no way in.
    #[track_caller]
    fn is_cleaned_up(&self) {
        let all = |action| self.moto.ec2(&[("Action", action)]);
        let instances = all("DescribeInstances");
        let instances = texts(instances.split("<instanceState>").last().unwrap(), "name");
        assert_eq!(instances.first().map(String::as_str), Some("terminated"));
        assert_eq!(texts(&all("DescribeSecurityGroups"), "groupName"), ["default"]);
        let pairs = texts(&all("DescribeKeyPairs"), "keyName");
        assert!(pairs.iter().all(|pair| !pair.starts_with("packer")), "{pairs:?}");
    }
}

/// Asserts that the image has nothing of the machine that it was made on, nor of who made it.
#[track_caller]
fn is_sealed(instance: &Instance) {
    assert_eq!(fs::read_to_string(instance.path("etc/machine-id")).unwrap(), "");
    let left = instance.run(
        "ls -d /tmp/* /dev/shm/* /run/warmkit.* /etc/ssh/ssh_host_* /root/.ssh/* /root/.docker /home/*/.ssh/* 2>/dev/null",
    );
    assert_eq!(left.stdout, "");
    let found = |what: &str| {
        instance.run(&format!("grep -rlF --devices=skip --exclude-dir=proc -e '{what}' / | head -n 1")).stdout
    };
    assert_eq!(found(&secret()), "");
    assert_ne!(found("ExecStart=/usr/local/bin/buildkitd"), "");
}

#[test]
fn an_ami_is_made_of_an_instance_that_is_warm() {
    let Some(cloud) = Cloud::find() else { return };
    let (instance, told) = cloud.boot();
    // As of release 23.4: done, and not content with something.
    instance
        .run(
            r#"install -m 0666 /dev/null /run/asked
            printf '#!/bin/sh\necho "$*" >>/run/asked; test $1 != status || exit 2\n' >/usr/bin/cloud-init
            chmod +x /usr/bin/cloud-init"#,
        )
        .expect_success("cloud-init");
    let context = cloud.context(|_| ());
    let (binary, args) = (cloud.binary(), list(&["--platform", "linux/amd64"]));
    let variables = [
        ("warmkit_binary", binary.as_str()),
        ("context", &context),
        ("context_args", &args),
        ("tags", "{team = \"builders\"}"),
        ("volume_size", "20"),
    ];
    let ended = cloud.build(&instance, &variables);
    let ended = ended.expect_success(&format!("packer build; sshd: {}", instance.log()));
    let said = ended.stdout + &ended.stderr;
    for line in [
        "12 of 12 steps CACHED, 0 imports, 0 extractions",
        "provision: /var/lib/buildkit is warm",
        " for credentials",
    ] {
        assert!(said.contains(line), "{line}:\n{said}");
    }
    assert!(!said.contains(&secret()), "packer printed the password");

    let (running, volume) = told.lock().unwrap().clone();
    for (xml, name, value) in [
        (&running, "instanceType", "m6i.large"),
        (&running, "arn", "arn:aws:iam::123456789012:instance-profile/ecr-read"),
        (&running, "value", "builders"),
        (&volume, "size", "20"),
        (&volume, "volumeType", "gp3"),
        (&volume, "encrypted", "true"),
        (&volume, "value", "builders"),
    ] {
        assert!(texts(xml, name).contains(&value.to_owned()), "{name} is not {value}: {xml}");
    }

    let [ami] = cloud.amis().try_into().unwrap();
    let snapshots = cloud.moto.ec2(&[
        ("Action", "DescribeSnapshots"),
        ("Filter.1.Name", "tag:team"),
        ("Filter.1.Value.1", "builders"),
    ]);
    let described = texts(&snapshots, "description");
    assert!(described.len() == 1 && described[0].ends_with(&ami), "{described:?}");
    cloud.is_cleaned_up();

    is_sealed(&instance);
    let asked = fs::read_to_string(instance.path("run/asked")).unwrap();
    assert_eq!(asked, "status --wait --long\nclean --logs\n");
    for unit in [
        "multi-user.target.wants/buildkit.service",
        "multi-user.target.wants/warmkit-hydrate.service",
        "timers.target.wants/warmkit-hydrate.timer",
    ] {
        assert!(instance.path("etc/systemd/system").join(unit).is_symlink(), "{unit} is not enabled");
    }
    let verified = instance.run("warmkit verify --for host");
    verified.expect_success("warmkit verify");
}

#[test]
fn no_ami_is_made_of_an_instance_that_is_not_warm_or_has_a_secret() {
    let Some(cloud) = Cloud::find() else { return };
    let key = &cloud.emulator.key;
    let public = base64::engine::general_purpose::STANDARD.encode(&key.public);
    cloud.moto.ec2(&[("Action", "ImportKeyPair"), ("KeyName", "mine"), ("PublicKeyMaterial", &public)]);
    let (instance, _) = cloud.boot();
    let context = cloud.context(|context| fs::write(context.join("deps.txt"), "changed\n").unwrap());
    let package = cloud.package();
    let login = [("ssh_private_key_file", key.private.to_str().unwrap()), ("ssh_keypair_name", "mine")];
    let fails = |variables: &[(&str, &str)], code: i32, parts: &[&str]| {
        let ended = cloud.build(&instance, &[&login, variables].concat());
        let said = ended.stdout + &ended.stderr;
        assert!(!ended.status.success(), "{said}");
        let code = format!("Script exited with non-zero exit status: {code}.");
        for part in [&[code.as_str()], parts].concat() {
            assert!(said.contains(part), "no {part:?} in {said}; sshd: {}", instance.log());
        }
        assert_eq!(cloud.amis(), [""; 0]);
        cloud.is_cleaned_up();
        assert_eq!(texts(&cloud.moto.ec2(&[("Action", "DescribeKeyPairs")]), "keyName"), ["mine"]);
    };
    let binary = ("warmkit_binary", package.as_str());
    fails(&[binary, ("context", &context)], 9, &["ran         [deps 2/3] COPY deps.txt ./"]);

    // Of somebody who is neither root nor the one who logs in, whose own seal.sh removes.
    instance
        .run(
            "rm -r /tmp/warmkit /var/lib/buildkit; mkdir -p /home/ci/.docker /root/.docker
             echo '{\"auths\":{\"r.example\":{\"auth\":\"eDpqc3Q=\"}}}' | tee /root/.docker/config.json >/home/ci/.docker/config.json",
        )
        .expect_success("a secret");
    fails(
        &[],
        8,
        &["provision: /var/lib/buildkit is warm", "credentials-left", "/home/ci/.docker/config.json"],
    );
    assert!(!instance.path("root/.docker/config.json").exists());
}
