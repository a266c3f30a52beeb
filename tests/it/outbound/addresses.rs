//! Which addresses requests go to: every class that is not the public internet is refused, in whatever way it
//! is written, and whatever name has it.

use std::net::TcpListener;

use serde_json::{Value, json};

use super::peers::{Peer, ok};
use super::{ask, ask_one, error, grant};
use crate::support::server;

/// One address of each class, and of each way to put an IPv4 address into another.
const REFUSED: &[&str] = &[
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.1.1",
    "172.16.0.1",
    "172.31.255.254",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2a00::5efe:127.0.0.1",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
];

/// With brackets where it needs them.
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[test]
fn addresses_that_are_not_public_are_refused() {
    // Whatever of it listens on this machine is listened to.
    let peer = Peer::on(TcpListener::bind("[::]:0").unwrap(), None, ok("inside"));
    let port = peer.port();
    let names: Vec<String> = (0..REFUSED.len()).map(|number| format!("n{number}.test")).collect();
    let resolve: Vec<String> = names.iter().zip(REFUSED).map(|(name, address)| format!("{name}={address}")).collect();
    let server = server(&["--resolve", &resolve.join(",")]);
    let client = &server.client;
    // As addresses, then as names that have them; no more than that many can be granted at once.
    let hosts: Vec<&str> =
        REFUSED.iter().copied().chain(names.iter().map(String::as_str)).chain(["localhost"]).collect();
    for hosts in hosts.chunks(60) {
        let destination = |host: &&str| json!({"host": host, "port": port, "scheme": "http"});
        grant(client, &hosts.iter().map(destination).collect::<Value>());
        let request = |host: &&str| json!({"scheme": "http", "authority": authority(host, port)});
        let answers = ask(client, &hosts.iter().map(request).collect::<Value>());
        assert_eq!(answers.len(), hosts.len());
        for (host, answer) in hosts.iter().zip(answers) {
            assert_eq!(answer, error("DestinationIpProhibited"), "{host}");
        }
    }
    assert_eq!(peer.connections(), 0);
}

/// Numbers that some resolvers take for addresses cannot even be granted.
#[test]
fn other_ways_to_write_an_address_are_no_hosts() {
    let server = server(&["--allow-network", "127.0.0.0/8"]);
    for host in ["127.1", "2130706433", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "[::1]", "127.0.0.1.", "127.0.0.1:80"]
    {
        let patched = super::patch(&server.client, "http", &json!({"http": [{ "host": host }]}));
        assert_eq!(patched.problem(422)["errors"][0]["pointer"], "#/grants/http/0/host", "{host}");
    }
}

#[test]
fn the_operator_allows_networks() {
    let peer = Peer::at([127, 0, 0, 2].into(), None, ok("inside"));
    let port = peer.port();
    let grants = json!([{"host": "127.0.0.2", "port": port, "scheme": "http"}, {"host": "::ffff:127.0.0.2", "port": port, "scheme": "http"}]);
    let request = json!({"scheme": "http", "authority": format!("127.0.0.2:{port}")});
    for (networks, reached) in [("127.0.0.0/30", true), ("10.0.0.0/8,127.0.0.2", true), ("127.0.0.1,10.0.0.0/8", false)]
    {
        let server = server(&["--allow-network", networks]);
        grant(&server.client, &grants);
        let answer = ask_one(&server.client, &request);
        match reached {
            true => assert_eq!(answer["body"], "inside", "{networks}: {answer}"),
            false => assert_eq!(answer, error("DestinationIpProhibited"), "{networks}"),
        }
        // The same address inside of another is another.
        let mapped = json!({"scheme": "http", "authority": format!("[::ffff:127.0.0.2]:{port}")});
        assert_eq!(ask_one(&server.client, &mapped), error("DestinationIpProhibited"), "{networks}");
    }
    assert_eq!(peer.connections(), 2);
}

#[test]
fn of_several_addresses_the_allowed_ones_are_tried() {
    // Somebody listens at the same port of all of them.
    let allowed = Peer::at([127, 0, 0, 3].into(), None, ok("allowed"));
    let port = allowed.port();
    let forbidden = Peer::on(TcpListener::bind(("127.0.0.2", port)).unwrap(), None, ok("forbidden"));
    let resolve =
        "several.test=127.0.0.2,several.test=127.0.0.4,several.test=127.0.0.3,none.test=127.0.0.2,none.test=10.0.0.1";
    let server = server(&["--allow-network", "127.0.0.3,127.0.0.4", "--resolve", resolve]);
    let destination = |host: &str| json!({"host": host, "port": port, "scheme": "http"});
    grant(&server.client, &json!([destination("several.test"), destination("none.test")]));
    let request = |host: &str| json!({"scheme": "http", "authority": format!("{host}:{port}")});
    let answers = ask(&server.client, &json!([request("several.test"), request("none.test"), request("SEVERAL.test")]));
    assert_eq!(answers[0]["body"], "allowed", "nobody listens on the other that is allowed: {answers:?}");
    assert_eq!(answers[1], error("DestinationIpProhibited"));
    assert_eq!(answers[2]["body"], "allowed");
    assert_eq!((allowed.connections(), forbidden.connections()), (2, 0));
}

#[test]
fn names_and_addresses_that_nobody_has() {
    let server = server(&["--allow-network", "127.0.0.1"]);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    grant(
        &server.client,
        &json!([{"host": "nobody.invalid"}, {"host": "127.0.0.1", "port": closed, "scheme": "http"}]),
    );
    let answers = ask(
        &server.client,
        &json!([
            {"authority": "nobody.invalid"}, {"scheme": "http", "authority": format!("127.0.0.1:{closed}")},
        ]),
    );
    // Where no name server answers at all, its time is over.
    let unknown = answers[0]["error"].as_str().unwrap_or_default();
    assert!(["DnsError", "DnsTimeout"].contains(&unknown), "{answers:?}");
    assert_eq!(answers[1], error("ConnectionRefused"));
}
