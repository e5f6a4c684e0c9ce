use super::*;

fn parse(words: &[&str]) -> Result<Cli, crate::failure::Failure> {
    Cli::try_parse_from(std::iter::once("bhatti").chain(words.iter().copied()))
        .map_err(|error| crate::failure::usage(&error, words.iter().map(|word| (*word).to_owned())))
}

fn verb(words: &[&str]) -> Verb {
    parse(words).unwrap_or_else(|failure| panic!("{words:?}: {failure}")).verb
}

#[test]
fn the_definitions_are_consistent() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
}

#[test]
fn global_flags_are_taken_before_and_after_the_verb() {
    for words in [
        &["--json", "--url", "http://h:1", "--data-dir", "/d", "list"][..],
        &["list", "--json", "--url", "http://h:1", "--data-dir", "/d"][..],
    ] {
        let global = parse(words).unwrap().global;
        assert!(global.json);
        assert_eq!(global.url.as_deref(), Some("http://h:1"));
        assert_eq!(global.data_dir.as_deref(), Some(std::path::Path::new("/d")));
    }
}

#[test]
fn what_follows_the_command_belongs_to_the_command() {
    for words in [
        &["exec", "sb", "--timeout", "5", "--env", "A=b", "--", "ls", "-l", "--json"][..],
        &["exec", "--timeout", "5", "--env", "A=b", "sb", "ls", "-l", "--json"][..],
    ] {
        let cli = parse(words).unwrap();
        assert!(!cli.global.json);
        let Verb::Exec(exec) = cli.verb else { panic!("{words:?}") };
        assert_eq!(exec.command, ["ls", "-l", "--json"]);
        assert_eq!(exec.timeout, Some(5.0));
        assert_eq!(exec.env, [Pair("A".into(), "b".into())]);
    }
}

#[test]
fn create_takes_every_flag_of_the_contract() {
    let Verb::Create(create) = verb(&[
        "create",
        "--name",
        "web",
        "--image",
        "minimal",
        "--cpus",
        "2",
        "--memory",
        "1024",
        "--disk-size",
        "4096",
        "--env",
        "A=b=c",
        "--env",
        "E=",
        "--secret",
        "s",
        "--file",
        "a:b:/etc/x:0600",
        "--volume",
        "v:/data:ro",
        "--init",
        "sleep 1",
        "--keep-hot",
        "--label",
        "k=v",
    ]) else {
        panic!("create")
    };
    assert_eq!(create.env, [Pair("A".into(), "b=c".into()), Pair("E".into(), String::new())]);
    assert_eq!(
        create.file,
        [FileArg { local: "a:b".into(), guest: "/etc/x".into(), mode: Some("0600".into()) }]
    );
    assert_eq!(create.volume, [VolumeArg { name: "v".into(), mount: "/data".into(), read_only: true }]);
    assert_eq!((create.cpus, create.memory, create.disk_size), (2, 1024, Some(4096)));
    assert!(create.keep_hot);
}

#[test]
fn volumes_take_every_word_of_the_contract() {
    let volume = |words: &[&str]| match parse(&[&["volume"], words].concat()).map(|cli| cli.verb) {
        Ok(Verb::Volume(volume)) => Ok(volume),
        Ok(other) => panic!("{other:?}"),
        Err(refused) => Err(refused),
    };
    let Ok(Volume::Create(create)) = volume(&["create", "data", "--size", "64"]) else { panic!("create") };
    assert_eq!((create.volume.as_str(), create.size), ("data", 64));
    for (given, path, read_only) in [
        ("/data", "/data", false),
        ("/data:ro", "/data", true),
        ("/a:b:ro", "/a:b", true),
        ("data", "data", false),
    ] {
        let Ok(Volume::Attach(attach)) = volume(&["attach", "data", "web", given]) else { panic!("{given}") };
        assert_eq!((attach.mount.path.as_str(), attach.mount.read_only), (path, read_only));
    }
    let Ok(Volume::Clone(clone)) = volume(&["clone", "data", "--name", "copy"]) else { panic!("clone") };
    assert_eq!((clone.volume.as_str(), clone.name.as_str()), ("data", "copy"));
    assert!(
        matches!(volume(&["delete", "-y", "a", "b"]), Ok(Volume::Delete(delete)) if delete.volumes.len() == 2)
    );
    for wrong in [
        &["create", "data"][..],
        &["create", "data", "--size", "0"],
        &["create", "data", "--size=-5"],
        &["create", "Data", "--size", "64"],
        &["attach", "data", "web"],
        &["resize", "data"],
        &["clone", "data"],
        &["delete"],
    ] {
        assert!(volume(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn snapshots_and_forks_take_every_flag_of_the_contract() {
    let Verb::Snapshot(Snapshot::Create(create)) =
        verb(&["snapshot", "create", "sb", "--name", "n", "--disk-only"])
    else {
        panic!("snapshot create")
    };
    assert!(create.sandbox == "sb" && create.name.as_str() == "n" && create.disk_only);
    let Verb::Snapshot(Snapshot::Resume(resume)) = verb(&[
        "snapshot",
        "resume",
        "n",
        "--name",
        "sb",
        "--label",
        "k=v",
        "--keep-hot",
        "--disk-size",
        "4096",
        "--strict",
    ]) else {
        panic!("snapshot resume")
    };
    assert_eq!(resume.name.as_ref().map(SandboxName::as_str), Some("sb"));
    assert_eq!((resume.copy.disk_size, resume.copy.keep_hot, resume.copy.strict), (Some(4096), true, true));
    let Verb::Snapshot(Snapshot::Delete(delete)) = verb(&["snapshot", "rm", "a", "b", "-y"]) else {
        panic!("snapshot delete")
    };
    assert!(delete.snapshots.len() == 2 && delete.yes);
    assert!(matches!(verb(&["snapshot", "ls"]), Verb::Snapshot(Snapshot::List)));
    assert!(matches!(verb(&["snapshot", "inspect", "n"]), Verb::Snapshot(Snapshot::Inspect(_))));
    let Verb::Fork(fork) = verb(&["fork", "sb", "--name", "n", "--count", "64"]) else { panic!("fork") };
    assert_eq!((fork.sandbox.as_str(), fork.count), ("sb", 64));
    let Verb::Fork(fork) = verb(&["fork", "sb"]) else { panic!("fork") };
    assert!(fork.name.is_none() && fork.count == 1 && fork.copy.disk_size.is_none());
    let Verb::Create(create) = verb(&["create", "--from", "n", "--name", "sb", "--label", "k=v"]) else {
        panic!("create")
    };
    assert_eq!(create.from.as_deref(), Some("n"));
}

#[test]
fn defaults_are_those_of_the_contract() {
    let Verb::Create(create) = verb(&["create"]) else { panic!("create") };
    assert_eq!(
        (create.image.as_str(), create.cpus, create.memory, create.disk_size),
        ("minimal", 1, 512, None)
    );
    let Verb::Serve(serve) = verb(&["serve"]) else { panic!("serve") };
    assert_eq!(serve.listen, Listen::At("127.0.0.1:8080".parse().unwrap()));
    assert_eq!((serve.warm_after, serve.cold_after), (After::seconds(30), After::seconds(1800)));
    assert_eq!((serve.standby, serve.spare_vmms, serve.sleep_busy), (0, 0, false));
    assert_eq!(serve.storage_layout, Layout::Auto);
    let Verb::Setup(setup) = verb(&["setup"]) else { panic!("setup") };
    assert_eq!((setup.storage, setup.size, setup.undo), (Storage::Auto, None, false));
}

#[test]
fn wrong_usage_is_one_line_with_status_2() {
    let cases: [(&[&str], &str); 28] = [
        (&["create", "--cpus", "0"], "'0' for '--cpus"),
        (&["create", "--cpus", "x"], "'x' for '--cpus"),
        (&["create", "--name", "Not_Ok"], "must begin and end with a letter or digit"),
        (&["create", "--env", "NOVALUE"], "use KEY=VALUE"),
        (&["create", "--file", "a"], "LOCAL:/GUEST/PATH"),
        (&["create", "--file", "a:/b:9"], "octal mode"),
        (&["create", "--nosuch"], "'--nosuch'"),
        (&["exec", "sb"], "<CMD>"),
        (&["exec", "sb", "--timeout", "0", "true"], "more than 0"),
        (&["serve", "--listen", "nowhere"], "ADDRESS:PORT"),
        (&["serve", "--storage-layout", "zfs"], "[possible values: auto, overlay, reflink]"),
        (&["file", "write", "sb", "/x", "--mode", "rwx"], "octal mode"),
        (&["file", "read", "sb", "/x", "--lines", "0:1"], "FROM:COUNT"),
        (&["nosuchverb"], "unrecognized subcommand"),
        (&["create", "--from", "n", "--image", "minimal"], "cannot be used with"),
        (&["create", "--env", "A=b", "--from", "n"], "cannot be used with"),
        (&["snapshot", "create", "sb"], "--name"),
        (&["snapshot", "create", "sb", "--name", ".."], "'..' for '--name"),
        (&["snapshot", "create", "sb", "--name", "a/b"], "'a/b' for '--name"),
        (&["snapshot", "resume", "../n"], "'../n' for '<N>'"),
        (&["snapshot", "resume", "n", "--name", "Not_Ok"], "must begin and end with a letter or digit"),
        (&["snapshot", "resume", "n", "--disk-size", "0"], "'0' for '--disk-size"),
        (&["snapshot", "delete"], "<N>"),
        (&["fork", "sb", "--count", "0"], "'0' for '--count"),
        (&["fork", "sb", "--count=-1"], "'-1' for '--count"),
        (&["fork", "sb", "--count", "65"], "65 is not in 1..=64"),
        (&["fork", "sb", "--count", "1000000000"], "is not in 1..=64"),
        (&["fork", "sb", "--name", "0123456789abcdef"], "looks like an id"),
    ];
    for (words, expected) in cases {
        let failure = parse(words).unwrap_err();
        let line = failure.to_string();
        assert_eq!(failure.exit, 2, "{words:?}");
        assert!(line.starts_with("error: ") && line.contains(expected), "{words:?}: {line}");
        assert!(!line.contains('\n') && line.contains("--help`"), "{words:?}: {line}");
    }
}

#[test]
fn wrong_usage_names_the_verb_whose_help_tells_more() {
    for (words, verb) in [
        (&["--json", "create", "--cpus", "0"][..], "`bhatti create --help`"),
        (&["file", "write", "sb", "/x", "--mode", "9"], "`bhatti file write --help`"),
        (&["snapshot", "create", "sb"], "`bhatti snapshot create --help`"),
        (&["nosuchverb"], "`bhatti --help`"),
    ] {
        let failure = parse(words).unwrap_err();
        assert!(failure.hint.contains(verb), "{words:?}: {failure}");
    }
}

#[test]
fn the_last_of_keep_hot_and_no_keep_hot_counts() {
    let Verb::Edit(edit) = verb(&["edit", "sb", "--keep-hot", "--no-keep-hot"]) else { panic!("edit") };
    assert!(edit.no_keep_hot && !edit.keep_hot);
}
