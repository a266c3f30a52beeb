//! Components that are no tasks, or mean harm. The tests and the measurements upload them.

/// The text format of WebAssembly, as bytes.
pub(crate) fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("the text is right")
}

fn push_size(bytes: &mut Vec<u8>, mut size: usize) {
    loop {
        let byte = (size & 0x7f) as u8;
        size >>= 7;
        bytes.push(if size == 0 { byte } else { byte | 0x80 });
        if size == 0 {
            break;
        }
    }
}

/// A component with a core module more.
pub(crate) fn with_module(mut component: Vec<u8>, module: &[u8]) -> Vec<u8> {
    component.push(1);
    push_size(&mut component, module.len());
    component.extend(module);
    component
}

/// A component that is refused before it is compiled.
pub(crate) struct Refused {
    /// What is the matter with it.
    pub(crate) what: &'static str,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// What the answer has to say of it.
    pub(crate) reasons: Vec<&'static str>,
}

/// What is refused, each made of `good`, a component that is not.
pub(crate) fn refused(good: &[u8]) -> Vec<Refused> {
    let mut all = no_tasks(good);
    all.extend(bombs(good));
    all.into_iter().map(|(what, bytes, reasons)| Refused { what, bytes, reasons }).collect()
}

type Row = (&'static str, Vec<u8>, Vec<&'static str>);

fn no_tasks(good: &[u8]) -> Vec<Row> {
    let mut trailing = good.to_vec();
    trailing.extend(b"more");
    let of_module = |text: &str| with_module(good.to_vec(), &wat(text));
    vec![
        ("text", b"this is no component".to_vec(), vec!["does not begin with the bytes 00 61 73 6d"]),
        ("nothing", Vec::new(), vec![""]),
        ("half", good[..good.len() / 2].to_vec(), vec![""]),
        ("more behind it", trailing, vec!["no valid WebAssembly"]),
        ("a module that is no program", wat("(module)"), vec!["_start"]),
        (
            "a module that imports what is not offered",
            wat(r#"(module (import "env" "a" (func)) (import "env" "b" (func)))"#),
            vec!["env.a,", "env.b,", "_start", "memory"],
        ),
        ("nothing exported", wat("(component)"), vec!["run"]),
        (
            "a component exported",
            wat(r#"(component (component $c) (export "nested" (component $c)))"#),
            vec!["it exports nested, which is a component"],
        ),
        (
            "several imports that are not offered",
            wat(r#"(component
                (import "nowhere:special/thing@1.0.0" (instance (export "f" (func))))
                (import "wasi:io/poll@0.2.0" (instance (export "fly" (func))))
                (import "wasi:io/poll@0.3.0" (instance))
                (import "lonely" (func)))"#),
            vec!["nowhere:special/thing@1.0.0", "fly of wasi:io/poll@0.2.0", "wasi:io/poll@0.3.0", "lonely", "run"],
        ),
        (
            "a command that takes something",
            wat(r#"(component (core module $m (func (export "run") (param i32)))
                (core instance $i (instantiate $m))
                (func $run (param "x" u32) (canon lift (core func $i "run")))
                (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#),
            vec!["wasi:cli/run@0.2.0, but not as a command does"],
        ),
        (
            "a command that returns something else",
            wat(r#"(component (core module $m (func (export "run") (result i32) i32.const 0))
                (core instance $i (instantiate $m))
                (func $run (result u32) (canon lift (core func $i "run")))
                (instance (export "wasi:cli/run@0.2.3") (export "run" (func $run))))"#),
            vec!["wasi:cli/run@0.2.3, but not as a command does"],
        ),
        (
            "a command without its function",
            wat(r#"(component (instance (export "wasi:cli/run@0.2.0")))"#),
            vec!["wasi:cli/run@0.2.0, but not as a command does"],
        ),
        (
            "a module whose start takes something",
            wat(r#"(module (memory (export "memory") 1) (func (export "_start") (param i32)))"#),
            vec!["_start takes or returns something"],
        ),
        ("shared memory", of_module("(module (memory 1 1 shared))"), vec!["threads"]),
        ("64-bit memory", of_module("(module (memory i64 1))"), vec!["memory64"]),
        ("garbage collection", of_module("(module (type (struct)))"), vec!["gc"]),
        ("exceptions", of_module("(module (tag))"), vec!["exceptions"]),
        ("tail calls", of_module("(module (func $f return_call $f))"), vec!["tail calls"]),
        (
            "relaxed vectors",
            of_module("(module (func (param v128) (result v128) local.get 0 local.get 0 i8x16.relaxed_swizzle))"),
            vec!["relaxed SIMD"],
        ),
        ("a stream", wat("(component (type $s (stream u8)) (core func (canon stream.new $s)))"), vec!["stream.new"]),
        ("a future", wat("(component (type $f (future u8)) (core func (canon future.new $f)))"), vec!["future.new"]),
        ("backpressure", wat("(component (core func (canon backpressure.inc)))"), vec!["backpressure.inc"]),
        // The parser tells of it on several lines.
        (
            "types that do not fit",
            wat(r#"(component (import "f" (func $f))
                (component $c (import "a" (func (param "x" u8))))
                (instance (instantiate $c (with "a" (func $f)))))"#),
            vec!["type mismatch for import `a`: "],
        ),
        (
            "a name with lines in it",
            of_module(r#"(module (func (export "a\n\1b[1mb\e2\80\a8")) (func (export "a\n\1b[1mb\e2\80\a8")))"#),
            vec!["duplicate export name `a: \\u{1b}[1mb"],
        ),
        ("nonsense in a function", with_module(good.to_vec(), &broken()), vec!["no valid WebAssembly"]),
    ]
}

/// A module whose function adds what is not there.
pub(crate) fn broken() -> Vec<u8> {
    let mut bytes = wat("(module (func (drop (i32.add (i32.const 1) (i32.const 2)))))");
    // One constant becomes two instructions that do nothing.
    let at = bytes.windows(2).rposition(|pair| pair == [0x41, 2]).expect("the constant");
    bytes[at..at + 2].copy_from_slice(&[1, 1]);
    bytes
}

/// What would cost a compiler, or a parser, minutes and gigabytes.
fn bombs(good: &[u8]) -> Vec<Row> {
    let too_much = "takes more time or memory than is allowed";
    let of_module = |text: &str| with_module(good.to_vec(), &wat(text));
    // Again and again: local 0 is local 0 times local 0.
    let heavy = |bytes: usize, locals: usize| {
        let code = [0x20, 0, 0x20, 0, 0x7e, 0x21, 0].repeat(bytes / 7);
        with_module(good.to_vec(), &functions(1, locals, &code))
    };
    let names = |count: usize, bytes: usize| -> String {
        (0..count).map(|number| format!("(import \"a{}{number}\" (func))", "a".repeat(bytes))).collect()
    };
    let exports: String = (0..1001).map(|number| format!("(export \"a{number}\" (func $f))")).collect();
    vec![
        ("one function of 1 MB with 1,000 locals", heavy(1_000_000, 1_000), vec!["bytes of code, more than"]),
        ("one function of 1 MB with 40,000 locals", heavy(1_000_000, 40_000), vec!["bytes of code, more than"]),
        ("one function of 7 MB with 1,000 locals", heavy(7_000_000, 1_000), vec!["bytes of code, more than"]),
        ("many locals", heavy(1 << 10, 2_001), vec!["2001 locals, more than"]),
        ("much of both", heavy(400 << 10, 1_500), vec!["too much of both"]),
        (
            "many functions",
            of_module(&format!("(module {})", "(func)".repeat(200_001))),
            vec!["more than 200000 functions"],
        ),
        (
            "large tables",
            of_module(&format!("(module (table 1 funcref) (func) (elem (i32.const 0) func {}))", "0 ".repeat(200_001))),
            vec!["more than 200000 elements of tables"],
        ),
        (
            "many modules",
            wat(&format!("(component {})", "(core module)".repeat(201))),
            vec!["more than 200 core modules"],
        ),
        (
            "many components",
            wat(&format!("(component {})", "(component)".repeat(201))),
            vec!["more than 200 components"],
        ),
        (
            "components deep inside of each other",
            wat(&format!("{}{}", "(component ".repeat(40), ")".repeat(40))),
            vec!["more than 16 components inside"],
        ),
        ("many imports", wat(&format!("(component {})", names(1001, 0))), vec!["more than 1000 things"]),
        (
            "many exports",
            wat(&format!("(component (import \"f\" (func $f)) {exports})")),
            vec!["more than 1000 things"],
        ),
        ("long names", wat(&format!("(component {})", names(2, 40_000))), vec!["names of more than 65536 bytes"]),
        // In two kilobytes.
        ("types that double", wat(&doubling(14, 100)), vec![too_much]),
        // Each component has all of the one before twice.
        ("components that double", wat(&doubling_components(18)), vec![too_much]),
        ("one component many times", wat(&often(20_000, 900)), vec![too_much]),
        ("a table of branches with a thousand results", with_module(good.to_vec(), &branches(500_000)), vec![too_much]),
        ("eight million sections", sections(good, 8_000_000), vec!["more than 100000 sections"]),
        ("half a million types", with_module(good.to_vec(), &types(500_000)), vec!["more than 100000 types"]),
    ]
}

/// Types of which each has the one before twice, with a resource that is another one each time.
fn doubling(depth: usize, times: usize) -> String {
    let mut text = r#"(component (type $t0 (instance (export "r" (type (sub resource)))))"#.to_owned();
    for at in 1..depth {
        let before = at - 1;
        text += &format!(
            r#"(type $t{at} (instance (export "a" (instance (type $t{before}))) (export "b" (instance (type $t{before})))))"#
        );
    }
    for _ in 0..times {
        text += &format!(r#"(type (component (import "i" (instance (type $t{})))))"#, depth - 1);
    }
    text + ")"
}

fn doubling_components(depth: usize) -> String {
    let mut text = r#"(component (component $c0 (type $r (resource (rep i32))) (export "r" (type $r)))"#.to_owned();
    for at in 1..depth {
        let before = at - 1;
        text += &format!(
            r#"(component $c{at} (alias outer 1 $c{before} (component $c))
                (instance $a (instantiate $c)) (export "a" (instance $a))
                (instance $b (instantiate $c)) (export "b" (instance $b)))"#
        );
    }
    for _ in 0..100 {
        text += &format!("(instance (instantiate $c{}))", depth - 1);
    }
    text + ")"
}

fn often(exports: usize, times: usize) -> String {
    let exports: String =
        (0..exports).map(|at| format!(r#"(type $t{at} (list u8)) (export "e{at}" (type $t{at}))"#)).collect();
    format!("(component (component $c {exports}) {})", "(instance (instantiate $c))".repeat(times))
}

fn branches(targets: usize) -> Vec<u8> {
    let results = " i32".repeat(1_000);
    let zeros = " 0".repeat(targets);
    wat(&format!("(module (func (block (result{results}) unreachable br_table{zeros}) unreachable))"))
}

fn sections(good: &[u8], count: usize) -> Vec<u8> {
    let mut bytes = good.to_vec();
    bytes.extend([0, 1, 0].repeat(count));
    bytes
}

fn types(count: usize) -> Vec<u8> {
    let mut section = Vec::new();
    push_size(&mut section, count);
    for number in 0..count {
        section.extend([0x60, 19]);
        section.extend((0..19).map(|bit| if number >> bit & 1 == 1 { 0x7f } else { 0x7e }));
        section.push(0);
    }
    let mut module = b"\0asm\x01\0\0\0\x01".to_vec();
    push_size(&mut module, section.len());
    module.extend(section);
    module
}

/// A module of so many functions with such a body.
fn functions(count: usize, locals: usize, code: &[u8]) -> Vec<u8> {
    let mut body = vec![1];
    push_size(&mut body, locals);
    body.push(0x7e);
    body.extend(code);
    body.push(0x0b);
    let mut bodies = Vec::new();
    push_size(&mut bodies, count);
    for _ in 0..count {
        push_size(&mut bodies, body.len());
        bodies.extend(&body);
    }
    let mut types = Vec::new();
    push_size(&mut types, count);
    types.extend(vec![0; count]);
    let mut module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0".to_vec();
    for (id, section) in [(3, types), (10, bodies)] {
        module.push(id);
        push_size(&mut module, section.len());
        module.extend(section);
    }
    module
}

/// `good`, made up to so many bytes by a module of data.
pub(crate) fn large(good: &[u8], bytes: usize) -> Vec<u8> {
    let data = "a".repeat(bytes.saturating_sub(good.len()));
    with_module(good.to_vec(), &wat(&format!("(module (memory 400) (data (i32.const 0) \"{data}\"))")))
}

/// More code than there is time to look at, and then a function that is none.
pub(crate) fn long_and_broken(good: &[u8]) -> Vec<u8> {
    const UNREACHABLE: u8 = 0x00;
    const SELECT: u8 = 0x1b;
    let mut code = vec![UNREACHABLE];
    code.extend(vec![SELECT; 500_000]);
    code.push(UNREACHABLE);
    with_module(with_module(good.to_vec(), &functions(40, 0, &code)), &broken())
}

/// A component that takes a compiler a while, which grows with `functions`, and that runs like `good`.
pub(crate) fn slow(good: &[u8], functions: usize) -> Vec<u8> {
    // Each local is used again much later, so that all of them live at the same time.
    let locals = " i64".repeat(300);
    let mut code = String::new();
    for round in 1..=8 {
        for local in 0..300 {
            let other = (local * 7 + round) % 300;
            code += &format!("(local.set {local} (i64.add (local.get {other}) (i64.const {round})))");
            code += &format!("(if (i64.eqz (local.get {other})) (then (local.set {local} (local.get 0))))");
        }
    }
    let functions = format!("(func (local{locals}) {code})").repeat(functions);
    with_module(good.to_vec(), &wat(&format!("(module {functions})")))
}
