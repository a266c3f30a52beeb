;; A WASI command whose `run` says that it failed, which no compiler's `main` does: it exits. It exports functions of its
;; own as well, of which one is called like that of a task, and is none.
(component
  (core module $command
    (func (export "run") (result i32) (i32.const 1))
    (func (export "own") (param i32)))
  (core instance $command (instantiate $command))
  (func $run (result (result)) (canon lift (core func $command "run")))
  (func $own (param "x" u32) (canon lift (core func $command "own")))
  (instance $cli-run (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $cli-run))
  (export "run" (func $own))
  (export "other" (func $own)))
