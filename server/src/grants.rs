//! What a type's tasks may touch beyond their own computing. Nothing is granted by itself. Pure.

use core::net::IpAddr;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_path_to_error::Segment;

use crate::names;

/// Most destinations of one type.
const MOST_DESTINATIONS: usize = 64;

/// Most methods that a destination lists.
const MOST_METHODS: usize = 16;

/// Most secrets that a destination lists, and that one request has in it.
pub const MOST_SECRETS: usize = 16;
/// Most buckets of one type, and the longest name of one, in bytes.
const MOST_BUCKETS: usize = 64;
const BUCKET_BYTES: usize = 64;

/// Most values of `env`, and of `config`.
const MOST_VALUES: usize = 64;

/// The longest name of a value, in bytes.
const NAME_BYTES: usize = 128;

/// All names and values of `env` together, in bytes, and of `config`: each attempt gets a copy.
const VALUES_BYTES: usize = 16 << 10;

/// What the tasks of a type are granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Grants {
    /// Where `wasi:http` requests may go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub http: Vec<Destination>,
    /// Environment variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What `wasi:config` answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<BTreeMap<String, String>>,
    /// The tenant's buckets that `wasi:keyvalue` opens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub keyvalue: Vec<String>,
    /// Clocks and random numbers that are the same in every attempt of a task.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub deterministic: bool,
}

impl Grants {
    /// The same without the values that tasks are given.
    pub fn without_values(&self) -> Grants {
        let names =
            |values: &BTreeMap<String, String>| values.keys().map(|name| (name.clone(), String::new())).collect();
        Grants { env: names(&self.env), config: self.config.as_ref().map(names), ..self.clone() }
    }
}

/// One place that requests may go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// A host name in lower case, or an IP address.
    #[schema(example = "api.example.com")]
    pub host: String,
    /// Whether TLS is spoken there.
    #[serde(default)]
    pub scheme: Scheme,
    /// The port; that of the scheme where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub port: Option<u16>,
    /// The methods; all but CONNECT and TRACE, which nobody gets, where they are not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// The secrets that may be put into the headers of requests there; with `https` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 16, example = json!(["api-token"]))]
    pub secrets: Vec<String>,
}

/// The scheme of a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// HTTP without TLS.
    Http,
    /// HTTP over TLS.
    #[default]
    Https,
}

impl Scheme {
    /// As a URI has it.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// The port where none is given.
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// What is wrong with grants, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadGrant {
    /// The way to it: names of fields and numbers of items.
    pub path: Vec<String>,
    /// What is wrong there.
    pub detail: String,
}

impl Grants {
    /// Reads and checks grants.
    pub fn read(value: Value) -> Result<Grants, Vec<BadGrant>> {
        // By itself serde takes an array for a struct, too, and reads the fields by their position.
        let items = value.get("http").and_then(Value::as_array).into_iter().flatten();
        if let Some(index) = items.into_iter().position(|item| !item.is_object()) {
            return Err(vec![BadGrant {
                path: vec!["http".into(), index.to_string()],
                detail: "must be an object".into(),
            }]);
        }
        if !value.is_object() {
            return Err(vec![BadGrant { path: Vec::new(), detail: "must be an object".into() }]);
        }
        let grants: Grants = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().iter().filter_map(|segment| match segment {
                Segment::Seq { index } => Some(index.to_string()),
                Segment::Map { key } => Some(key.clone()),
                Segment::Enum { .. } | Segment::Unknown => None,
            });
            vec![BadGrant { path: path.collect(), detail: error.inner().to_string() }]
        })?;
        let mut bad = Vec::new();
        grants.check(&mut |path, detail| {
            bad.push(BadGrant { path: path.iter().map(|part| (*part).to_owned()).collect(), detail });
        });
        if bad.is_empty() { Ok(grants) } else { Err(bad) }
    }

    fn check(&self, bad: &mut dyn FnMut(&[&str], String)) {
        if self.http.len() > MOST_DESTINATIONS {
            bad(&["http"], format!("must have at most {MOST_DESTINATIONS} items"));
            return;
        }
        for (index, destination) in self.http.iter().enumerate() {
            let index = index.to_string();
            if !is_host(&destination.host) {
                bad(&["http", &index, "host"], "must be a host name in lower case, or an IP address".into());
            }
            if destination.port == Some(0) {
                bad(&["http", &index, "port"], "must be between 1 and 65535".into());
            }
            match &destination.methods {
                Some(methods) if methods.is_empty() || methods.len() > MOST_METHODS => {
                    bad(&["http", &index, "methods"], format!("must have 1 to {MOST_METHODS} items"));
                }
                Some(methods) if !methods.iter().all(|method| is_method(method)) => bad(
                    &["http", &index, "methods"],
                    "each must be of 1 to 32 upper-case letters, and not CONNECT or TRACE".into(),
                ),
                _ => {}
            }
            let secrets = &destination.secrets;
            if !secrets.is_empty() && destination.scheme != Scheme::Https {
                bad(&["http", &index, "secrets"], "must be of a destination with the scheme https".into());
            } else if secrets.len() > MOST_SECRETS {
                bad(&["http", &index, "secrets"], format!("must have at most {MOST_SECRETS} items"));
            } else if !secrets.iter().all(|name| names::is_name(name)) {
                let rule = "each must be a secret's name: 1 to 63 letters a-z, digits and '-', not beginning with '-'";
                bad(&["http", &index, "secrets"], rule.into());
            }
        }
        // An environment variable's name ends at its '=', and its value at a NUL.
        check_values("env", &self.env, |name| !name.contains('='), bad);
        if let Some(config) = &self.config {
            check_values("config", config, |_| true, bad);
        }
        if self.keyvalue.len() > MOST_BUCKETS {
            bad(&["keyvalue"], format!("must have at most {MOST_BUCKETS} items"));
        }
        for (index, bucket) in self.keyvalue.iter().enumerate().take(MOST_BUCKETS) {
            if !is_bucket(bucket) {
                let detail = format!("must be 1 to {BUCKET_BYTES} ASCII letters, digits, '.', '_' and '-'");
                bad(&["keyvalue", &index.to_string()], detail);
            }
        }
    }

    /// The destination that a request of this host, port, scheme and method may go to.
    pub fn allows(&self, scheme: Scheme, host: &str, port: u16, method: &str) -> bool {
        self.http.iter().any(|destination| destination.allows(scheme, host, port, method))
    }

    /// Whether such a request may have that secret in it.
    pub fn allows_secret(&self, scheme: Scheme, host: &str, port: u16, method: &str, secret: &str) -> bool {
        let lists = |destination: &Destination| destination.secrets.iter().any(|listed| listed == secret);
        scheme == Scheme::Https
            && self.http.iter().any(|listed| lists(listed) && listed.allows(scheme, host, port, method))
    }
}

impl Destination {
    fn allows(&self, scheme: Scheme, host: &str, port: u16, method: &str) -> bool {
        self.scheme == scheme
            && self.port.unwrap_or(scheme.default_port()) == port
            && same_host(&self.host, host)
            && is_method(method)
            && self.methods.as_ref().is_none_or(|methods| methods.iter().any(|allowed| allowed == method))
    }
}

/// Names what a component imports and is not granted.
pub fn missing(imports: &[String], grants: &Grants) -> Vec<&'static str> {
    let needs = |package: &str| imports.iter().any(|import| import.starts_with(package));
    let mut missing = Vec::new();
    if needs("wasi:http/") && grants.http.is_empty() {
        missing.push("http");
    }
    if needs("wasi:config/") && grants.config.is_none() {
        missing.push("config");
    }
    if needs("wasi:keyvalue/") && grants.keyvalue.is_empty() {
        missing.push("keyvalue");
    }
    missing
}

/// The same address may be written in several ways, a name only in upper and lower case.
fn same_host(granted: &str, asked: &str) -> bool {
    match (granted.parse::<IpAddr>(), asked.parse::<IpAddr>()) {
        (Ok(granted), Ok(asked)) => granted == asked,
        (Err(_), Err(_)) => granted.eq_ignore_ascii_case(asked),
        _ => false,
    }
}

fn is_host(host: &str) -> bool {
    if host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    // A name whose last label is a number is an address in a form that some resolvers know, such as `127.1`
    // or `0x7f.1`.
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().next().is_some_and(|byte| byte.is_ascii_digit());
    host.len() <= 253 && host.split('.').all(is_label) && !is_number
}

fn is_bucket(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=BUCKET_BYTES).contains(&name.len()) && name.bytes().all(is_plain)
}

fn is_method(method: &str) -> bool {
    (1..=32).contains(&method.len())
        && method.bytes().all(|byte| byte.is_ascii_uppercase())
        && !matches!(method, "CONNECT" | "TRACE")
}

fn check_values(
    field: &str,
    values: &BTreeMap<String, String>,
    is_name: impl Fn(&str) -> bool,
    bad: &mut dyn FnMut(&[&str], String),
) {
    if values.len() > MOST_VALUES {
        bad(&[field], format!("must have at most {MOST_VALUES} members"));
        return;
    }
    if values.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > VALUES_BYTES {
        bad(&[field], format!("must have at most {VALUES_BYTES} bytes in all names and values together"));
        return;
    }
    for (name, value) in values {
        if !(1..=NAME_BYTES).contains(&name.len()) || name.contains('\0') || !is_name(name) {
            bad(&[field, name], format!("the name must have 1 to {NAME_BYTES} bytes, no NUL and no '='"));
        }
        if value.contains('\0') {
            bad(&[field, name], "must have no NUL".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bad(value: Value) -> Vec<String> {
        Grants::read(value).unwrap_err().into_iter().map(|bad| bad.path.join("/")).collect()
    }

    fn destination(value: Value) -> Grants {
        Grants::read(json!({ "http": [value] })).unwrap()
    }

    #[test]
    fn nothing_is_granted_by_itself() {
        let none = Grants::read(json!({})).unwrap();
        assert_eq!(none, Grants::default());
        assert_eq!(serde_json::to_value(&none).unwrap(), json!({}));
        assert!(!none.allows(Scheme::Https, "example.com", 443, "GET"));
        let imports = [
            "wasi:http/outgoing-handler@0.2.12",
            "wasi:config/store@0.2.0-rc.1",
            "wasi:keyvalue/store@0.2.0-draft",
            "wasi:cli/environment@0.2.0",
        ];
        let imports = imports.map(str::to_owned);
        assert_eq!(missing(&imports, &none), ["http", "config", "keyvalue"]);
        let some = Grants::read(json!({"http": [{"host": "a"}], "config": {}, "keyvalue": ["a"]})).unwrap();
        assert!(missing(&imports, &some).is_empty());
        assert!(missing(&["taskcell:task/objects@0.1.0".to_owned()], &none).is_empty());
    }

    #[test]
    fn what_is_read_is_written() {
        let text = json!({
            "http": [
                {"host": "a.example", "scheme": "http", "port": 8080, "methods": ["GET"]},
                {"host": "a.example", "scheme": "https", "secrets": ["api-token"]},
            ],
            "env": {"A": "b"}, "config": {"c": "d"}, "keyvalue": ["e", "f"], "deterministic": true
        });
        assert_eq!(serde_json::to_value(Grants::read(text.clone()).unwrap()).unwrap(), text);
    }

    #[test]
    fn a_destination_is_scheme_host_port_and_method_together() {
        use Scheme::{Http, Https};
        let grants = destination(json!({"host": "api.example.com", "methods": ["GET", "HEAD"]}));
        assert!(grants.allows(Https, "api.example.com", 443, "GET"));
        assert!(grants.allows(Https, "API.example.COM", 443, "HEAD"));
        for (scheme, host, port, method) in [
            (Http, "api.example.com", 443, "GET"),
            (Http, "api.example.com", 80, "GET"),
            (Https, "api.example.com", 8443, "GET"),
            (Https, "example.com", 443, "GET"),
            (Https, "x.api.example.com", 443, "GET"),
            (Https, "api.example.com.", 443, "GET"),
            (Https, "api.example.com.evil.example", 443, "GET"),
            (Https, "api.example.com", 443, "POST"),
            (Https, "api.example.com", 443, "get"),
        ] {
            assert!(!grants.allows(scheme, host, port, method), "{scheme:?} {host} {port} {method}");
        }
        let any = destination(json!({"host": "a", "scheme": "http"}));
        assert!(any.allows(Http, "a", 80, "DELETE"));
        assert!(!any.allows(Http, "a", 80, "CONNECT") && !any.allows(Http, "a", 80, "TRACE"));
        let six = destination(json!({"host": "2001:db8::1"}));
        assert!(six.allows(Https, "2001:DB8:0:0::1", 443, "GET") && !six.allows(Https, "2001:db8::2", 443, "GET"));
    }

    #[test]
    fn a_secret_is_for_the_destinations_that_list_it() {
        use Scheme::{Http, Https};
        let grants = Grants::read(json!({"http": [
            {"host": "a.example", "methods": ["GET"], "secrets": ["x"]},
            {"host": "a.example", "secrets": ["y"]},
            {"host": "b.example"},
        ]}));
        let mut grants = grants.unwrap();
        let allows = |grants: &Grants, scheme, host, method, secret| {
            assert!(grants.allows(scheme, host, scheme.default_port(), method) || scheme == Http, "{host} {method}");
            grants.allows_secret(scheme, host, scheme.default_port(), method, secret)
        };
        assert!(allows(&grants, Https, "a.example", "GET", "x") && allows(&grants, Https, "a.example", "GET", "y"));
        assert!(allows(&grants, Https, "A.Example", "PUT", "y") && !allows(&grants, Https, "a.example", "PUT", "x"));
        assert!(!allows(&grants, Https, "b.example", "GET", "x") && !allows(&grants, Https, "a.example", "GET", "z"));
        assert!(!grants.allows_secret(Https, "a.example", 8443, "GET", "x"));
        // Nor if it were stored so.
        grants.http[1].scheme = Http;
        assert!(grants.allows(Http, "a.example", 80, "GET") && !allows(&grants, Http, "a.example", "GET", "y"));
    }

    #[test]
    fn hosts() {
        for good in ["a", "a-b.c_d.example", "xn--bcher-kva.example", "10.0.0.1", "::1", "1a.example", &"a".repeat(63)]
        {
            assert!(is_host(good), "{good}");
        }
        let long = format!("{}.a", "a.".repeat(126));
        for bad in [
            "",
            "A",
            "a.",
            ".a",
            "a..b",
            "-a",
            "a-",
            "a b",
            "a:80",
            "[::1]",
            "a@b",
            "a/b",
            "*.a",
            "bücher.example",
            "127.1",
            "0x7f.1",
            "2130706433",
            "0177.0.0.1",
            "10.0.0.256",
            "1.2.3.4.5",
            &"a".repeat(64),
            &long,
        ] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_pointed_at() {
        assert_eq!(bad(json!({"files": true})), ["files"]);
        assert_eq!(bad(json!([[]])), [""]);
        assert_eq!(bad(json!({"http": [["a"]]})), ["http/0"]);
        assert_eq!(bad(json!({"http": [{"host": "a"}, {"host": "a", "port": 70000}]})), ["http/1/port"]);
        assert_eq!(bad(json!({"http": [{"host": "a", "port": 0}, {"host": "A"}]})), ["http/0/port", "http/1/host"]);
        assert_eq!(bad(json!({"http": [{"host": "a", "path": "/"}]})), ["http/0/path"]);
        for methods in [json!([]), json!(["get"]), json!(["CONNECT"]), json!([""]), json!(vec!["GET"; 17])] {
            assert_eq!(bad(json!({"http": [{"host": "a", "methods": methods}]})), ["http/0/methods"]);
        }
        assert_eq!(bad(json!({"http": vec![json!({"host": "a"}); 65]})), ["http"]);
        let long = "a".repeat(64);
        for secrets in [json!([""]), json!(["A"]), json!(["-a"]), json!(["a_b"]), json!([long]), json!(vec!["a"; 17])] {
            assert_eq!(bad(json!({"http": [{"host": "a", "secrets": secrets}]})), ["http/0/secrets"], "{secrets}");
        }
        assert_eq!(bad(json!({"http": [{"host": "a", "scheme": "http", "secrets": ["a"]}]})), ["http/0/secrets"]);
        assert_eq!(bad(json!({"http": [{"host": "a", "secrets": "a"}]})), ["http/0/secrets"]);
        destination(json!({"host": "a", "secrets": vec!["a".repeat(63); 16]}));
        assert_eq!(bad(json!({"env": {"A=B": "c", "": "d", "E": "f\0"}})), ["env/", "env/A=B", "env/E"]);
        assert_eq!(bad(json!({"env": {"A": 1}})), ["env/A"]);
        assert_eq!(bad(json!({"config": {"a": "x".repeat(VALUES_BYTES)}})), ["config"]);
        let many: BTreeMap<String, String> = (0..65).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(bad(json!({ "env": many })), ["env"]);
        let names = json!(["a", "", "A.b_c-1", "a/b", "a b", "ä", "x".repeat(64), "x".repeat(65)]);
        let wrong = [1, 3, 4, 5, 7].map(|index| format!("keyvalue/{index}"));
        assert_eq!(bad(json!({ "keyvalue": names })), wrong);
        assert_eq!(bad(json!({"keyvalue": vec!["a"; 65]})), ["keyvalue"]);
        assert_eq!(bad(json!({"keyvalue": "a"})), ["keyvalue"]);
        assert_eq!(bad(json!({ "config": many })), ["config"]);
        let (long, method) = ("n".repeat(NAME_BYTES + 1), "M".repeat(33));
        assert_eq!(bad(json!({"env": {&long: ""}})), [format!("env/{long}")]);
        assert_eq!(bad(json!({"config": {&long: ""}})), [format!("config/{long}")]);
        assert_eq!(bad(json!({"http": [{"host": "a", "methods": [method]}]})), ["http/0/methods"]);
    }

    /// As much as there may be of each.
    #[test]
    fn the_most_is_taken() {
        let values: BTreeMap<String, String> = (0..MOST_VALUES).map(|n| (n.to_string(), String::new())).collect();
        let long = "n".repeat(NAME_BYTES);
        let value = "x".repeat(VALUES_BYTES - NAME_BYTES);
        for taken in [
            json!({"http": vec![json!({"host": "a"}); MOST_DESTINATIONS]}),
            json!({"http": [{"host": "a", "methods": vec!["M".repeat(32); MOST_METHODS]}]}),
            json!({"env": values, "config": values}),
            json!({"env": {&long: &value}, "config": {&long: &value}}),
        ] {
            Grants::read(taken).unwrap();
        }
    }
}
