;; A WASI command whose `run` says that it failed, which no compiler's `main` does: it exits.
(component
  (core module $command
    (func (export "run") (result i32) (i32.const 1)))
  (core instance $command (instantiate $command))
  (func $run (result (result)) (canon lift (core func $command "run")))
  (instance $cli-run (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $cli-run)))
