//! Proves that the parameter templates start on every server, that each setting is taken as it is written, and that a
//! source and a target of the templates get in step.

use std::collections::BTreeSet;
use std::fs;

use crate::harness::{
    eventually, secs, server::module_path, versions::repository, wait_equal, Builder, Reply, Server, Version,
};

/// One template: its settings as (line number, name, value) without the loadmodule line, and the module's arguments.
struct Template {
    text: String,
    settings: Vec<(usize, String, String)>,
    args: Vec<(String, String)>,
}

fn template(name: &str) -> Template {
    let text = fs::read_to_string(repository().join("redis-conf").join(name)).unwrap();
    let mut settings = Vec::new();
    let mut args = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some((name, value)) = line.split_once(' ').filter(|(name, _)| *name != "#") else { continue };
        if name == "loadmodule" {
            let words: Vec<&str> = value.split(' ').collect();
            args = words[1..].chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect();
        } else {
            settings.push((number, name.to_owned(), value.to_owned()));
        }
    }
    Template { text, settings, args }
}

/// What an operator gets who copies the template, with only paths and ports changed.
fn builder(version: Version, template: &Template) -> Builder {
    let lines = template.text.lines().filter(|line| !line.starts_with("loadmodule "));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let mut builder = Server::builder(version).template(&text);
    for (name, value) in &template.args {
        if name != "endpoint" && name != "source" {
            builder = builder.arg(name, value);
        }
    }
    builder
}

/// CONFIG GET gives back what the template says; sizes come back as bytes.
fn assert_taken(server: &Server, template: &Template) {
    let ours: BTreeSet<&str> = ["bind", "port", "dir", "unixsocket", "repl-diskless-sync-delay"].into();
    let mut client = server.client();
    for (_, name, value) in template.settings.iter().filter(|(_, name, _)| !ours.contains(name.as_str())) {
        let reply = cmd!(client, "CONFIG", "GET", name).good().array();
        let got = reply.get(1).map(|value| value.text()).unwrap_or_default();
        let want = match (name.as_str(), value.as_str()) {
            ("repl-backlog-size", "256mb") => (256u64 << 20).to_string(),
            ("client-output-buffer-limit", _) => format!("{} {} 120", 1u64 << 30, 512u64 << 20),
            _ => value.clone(),
        };
        // The output buffer limits of all classes come as one line; the class is called `slave` there.
        assert!(
            got == want || name.starts_with("client-output") && got.contains(&want),
            "{name}: {got}, not {want}"
        );
    }
}

for_each_server!(templates_start);

fn templates_start(version: Version) {
    let (source_conf, target_conf) = (template("source.conf"), template("target.conf"));
    let source = builder(version, &source_conf).start();
    let target = builder(version, &target_conf).source(&source).start();
    assert_taken(&source, &source_conf);
    assert_taken(&target, &target_conf);
    // Writes are let in as soon as the log is attached.
    eventually("the source takes writes", secs(60), || {
        (cmd!(source.client(), "SET", "key", "value") == Reply::Simple("OK".into())).then_some(())
    });
    target.wait_state("streaming");
    wait_equal(&source, &target);
    assert_eq!(cmd!(target.client(), "GET", "key").text(), "value");
    // The settings that an attach changes for a moment are back.
    assert_taken(&source, &source_conf);
}

/// Each setting has its reason in the line above it, and none is given twice.
#[test]
fn every_setting_of_the_templates_has_its_reason() {
    for name in ["source.conf", "target.conf"] {
        let template = template(name);
        let lines: Vec<&str> = template.text.lines().collect();
        let mut seen = BTreeSet::new();
        for (number, setting, _) in &template.settings {
            assert!(lines[number - 1].starts_with("# "), "{name}:{}: {setting} has no reason", number + 1);
            assert!(seen.insert(setting), "{name}:{}: {setting} is given twice", number + 1);
        }
        let module = template.text.lines().find(|line| line.starts_with("loadmodule ")).unwrap();
        assert!(module.contains(module_path().file_name().unwrap().to_str().unwrap()), "{module}");
        assert!(template.args.iter().any(|(name, _)| name == "service-id"));
    }
}
