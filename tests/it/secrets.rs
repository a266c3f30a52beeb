//! Secrets as clients write them, and the key that they are sealed with. What requests do with them is in
//! `outbound/secrets.rs`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::server::{Setup, refused, taskcell};
use crate::support::{Answer, Client, Server, temp_dir};

/// A file with a key, all of whose bytes are the same.
pub(crate) fn key_file(directory: &Path, byte: u8) -> PathBuf {
    let file = directory.join(format!("key-{byte}"));
    write_key(&file, &format!("{byte:02x}").repeat(32), 0o600);
    file
}

fn write_key(file: &Path, text: &str, mode: u32) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

/// Writes a secret.
pub(crate) fn put(client: &Client, name: &str, value: &str) -> Answer {
    client.send("PUT", &format!("/secrets/{name}"), &[], Some(value.as_bytes()))
}

/// A server with a key.
fn server(flags: &[&str]) -> (Server, tempfile::TempDir) {
    let directory = temp_dir();
    let file = key_file(directory.path(), 1);
    let flags = [&["--secret-key-file", file.to_str().unwrap()], flags].concat();
    (Setup::new(&flags).with_components(None).start(), directory)
}

fn list(client: &Client, query: &str) -> Value {
    client.get(&format!("/secrets{query}")).expect(200).json()
}

fn names(list: &Value) -> Vec<&str> {
    list["secrets"].as_array().unwrap().iter().map(|secret| secret["name"].as_str().unwrap()).collect()
}

#[test]
fn they_are_written_listed_and_removed() {
    let (server, _key) = server(&[]);
    let client = &server.client;
    assert_eq!(list(client, ""), json!({"secrets": [], "next_after": null}));
    let created = put(client, "b", "first value");
    assert_eq!(created.header("location"), Some("/secrets/b"));
    let first = created.expect(201).json();
    let members: Vec<&String> = first.as_object().unwrap().keys().collect();
    assert_eq!(members, ["created_at", "name", "updated_at", "usable"], "and no value");
    let second = put(client, "b", "second value").expect(200).json();
    assert_eq!(
        (&second["name"], &second["created_at"], &second["usable"]),
        (&json!("b"), &first["created_at"], &json!(true))
    );
    for name in ["c", "0-a", &"z".repeat(63)] {
        put(client, name, "some value").expect(201);
    }
    let all = list(client, "");
    assert_eq!(names(&all), ["0-a", "b", "c", &"z".repeat(63)]);
    assert_eq!((&all["secrets"][1], &all["next_after"]), (&second, &Value::Null));
    let page = list(client, "?limit=2");
    assert_eq!((names(&page), &page["next_after"]), (vec!["0-a", "b"], &json!("b")));
    assert_eq!(names(&list(client, "?limit=2&after=b")), ["c", &"z".repeat(63)]);
    client.get("/secrets?limit=0").problem(400);
    client.get("/secrets/b").problem(405);
    assert_eq!(client.delete("/secrets/b").expect(200).json(), json!({"name": "b", "deleted": true}));
    client.delete("/secrets/b").problem(404);
    client.delete("/secrets/B").problem(404);
    assert_eq!(names(&list(client, "?limit=2")), ["0-a", "c"]);
}

#[test]
fn preconditions() {
    let (server, _key) = server(&[]);
    let client = &server.client;
    let put = |header: (&str, &str)| client.send("PUT", "/secrets/a", &[header], Some(b"some value"));
    put(("if-match", "*")).problem(412);
    put(("if-none-match", "*")).expect(201);
    put(("if-none-match", "*")).problem(412);
    put(("if-match", "*")).expect(200);
    // No entity tag would be one of a secret.
    put(("if-match", "\"\"")).problem(412);
    client.send("DELETE", "/secrets/a", &[("if-match", "\"a\"")], None).problem(412);
    client.send("DELETE", "/secrets/a", &[("if-match", "*")], None).expect(200);
}

#[test]
fn what_cannot_be_a_secret() {
    let (server, _key) = server(&[]);
    let client = &server.client;
    for name in ["Upper", "-a", "a_b", "a.b", &"a".repeat(64), "%C3%A4", "a%2Fb", "%FF"] {
        put(client, name, "some value").problem(422);
    }
    let longest = "x".repeat(8192);
    for (value, part) in [
        ("1234567", "8 to 8192 bytes, and this one has 7"),
        ("", "this one has 0"),
        ("passphrase\n", "byte 11 of 11"),
        ("pass\rphrase", "byte 5 of 11"),
        ("\tpassphrase", "byte 1 of 11"),
        ("passphr\u{e4}se", "byte 8 of 11"),
        ("passphras\u{7f}", "byte 10 of 10"),
    ] {
        let problem = put(client, "wrong", value).problem(422);
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(part) && !problem.to_string().contains("pass"), "{problem}");
    }
    put(client, "wrong", &format!("{longest}x")).problem(413);
    assert_eq!(names(&list(client, "")), [""; 0]);
    put(client, "right", &longest).expect(201);
    put(client, "right", "12345678").expect(200);
    put(client, "right", "a b\tc\"~!").expect(200);
}

#[test]
fn a_tenant_has_no_more_than_it_may() {
    let (server, _key) = server(&["--max-secrets", "2"]);
    let client = &server.client;
    put(client, "a", "some value").expect(201);
    put(client, "b", "some value").expect(201);
    let refused = put(client, "c", "some value");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.header("ratelimit-policy"), Some("\"secrets\";q=2"));
    assert_eq!(refused.problem(429)["type"], "/problems/too-many-secrets");
    put(client, "b", "other value").expect(200);
    client.delete("/secrets/a").expect(200);
    put(client, "c", "some value").expect(201);
}

#[test]
fn without_a_key_none_is_taken() {
    let server = Setup::new(&[]).with_components(None).start();
    let client = &server.client;
    let problem = put(client, "a", "some value").problem(409);
    assert_eq!(problem["type"], "/problems/no-secret-key");
    assert!(!problem.to_string().contains("some value"));
    assert_eq!(names(&list(client, "")), [""; 0]);
    client.delete("/secrets/a").problem(404);
}

#[test]
fn what_another_key_sealed_is_listed_and_can_be_removed() {
    let (server, directory) = server(&[]);
    put(&server.client, "a", "some value").expect(201);
    put(&server.client, "b", "some value").expect(201);
    let usable = |client: &Client| {
        let list = list(client, "");
        list["secrets"].as_array().unwrap().iter().map(|secret| secret["usable"].as_bool().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(usable(&server.client), [true, true]);
    let setup = server.stop();
    let other = key_file(directory.path(), 2);
    let server = setup.with_flags(&["--secret-key-file", other.to_str().unwrap()]).start();
    assert_eq!(usable(&server.client), [false, false]);
    put(&server.client, "b", "new value").expect(200);
    assert_eq!(usable(&server.client), [false, true]);
    let server = server.stop().with_flags(&[]).start();
    assert_eq!(usable(&server.client), [false, false], "nor without a key");
    server.client.delete("/secrets/a").expect(200);
    assert_eq!(names(&list(&server.client, "")), ["b"]);
}

/// The key can be given in each of the ways that a setting can.
#[test]
fn where_the_key_is_named() {
    let directory = temp_dir();
    let file = directory.path().join("key");
    // As `base64` writes 32 bytes.
    write_key(&file, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n", 0o400);
    let toml = directory.path().join("c.toml");
    fs::write(&toml, format!("secret-key-file = {:?}\n", file.to_str().unwrap())).unwrap();
    for setup in
        [Setup::new(&["--config", toml.to_str().unwrap()]), Setup::new(&[]).with_env("TASKCELL_SECRET_KEY_FILE", &file)]
    {
        put(&setup.with_components(None).start().client, "a", "some value").expect(201);
    }
}

#[test]
fn wrong_keys_are_refused_before_anything_is_done() {
    let directory = temp_dir();
    let (data, elsewhere) = (directory.path().join("data"), directory.path().join("elsewhere"));
    let good = "0f".repeat(32);
    let with = |file: &Path| {
        let mut command = taskcell();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&data).arg("--secret-key-file").arg(file);
        let message = refused(&mut command);
        assert!(message.contains("--secret-key-file") && !message.contains(&good), "{message}");
        message
    };
    for text in ["", "password", &good[1..], &format!("{good}0f"), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg=="] {
        write_key(&elsewhere, text, 0o600);
        let message = with(&elsewhere);
        assert!(message.contains("no key in it") && (text.is_empty() || !message.contains(text)), "{message}");
    }
    write_key(&elsewhere, &good.repeat(1000), 0o600);
    assert!(with(&elsewhere).contains("no key in it"));
    for mode in [0o640, 0o604, 0o620, 0o644] {
        write_key(&elsewhere, &good, mode);
        assert!(with(&elsewhere).contains("chmod 600"), "{mode:o}");
    }
    with(&directory.path().join("nothing"));
    assert!(with(directory.path()).contains("no file"));
    assert!(!data.exists(), "nothing was made");

    fs::create_dir_all(data.join("sub")).unwrap();
    let inside = data.join("sub/key");
    write_key(&inside, &good, 0o600);
    let link = directory.path().join("link");
    symlink(&inside, &link).unwrap();
    let link_to_all = directory.path().join("all");
    symlink(&data, &link_to_all).unwrap();
    for file in [inside.clone(), link, link_to_all.join("sub/key"), data.join("../data/sub/key")] {
        assert!(with(&file).contains("in the data directory"), "{}", file.display());
    }
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "nothing was made");
}
