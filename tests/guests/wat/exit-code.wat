;; A WASI command that exits with code 42, by the one call that can say so, which came late and few use. In a
;; version of WASI 0.2 that is yet to come.
(component
  (import "wasi:cli/exit@0.2.99" (instance $exit
    (export "exit-with-code" (func (param "status-code" u8)))))
  (core func $exit (canon lower (func $exit "exit-with-code")))
  (core module $command
    (import "wasi" "exit" (func $exit (param i32)))
    (func (export "run") (result i32)
      (call $exit (i32.const 42))
      (unreachable)))
  (core instance $command (instantiate $command
    (with "wasi" (instance (export "exit" (func $exit))))))
  (func $run (result (result)) (canon lift (core func $command "run")))
  (instance $cli-run (export "run" (func $run)))
  (export "wasi:cli/run@0.2.99" (instance $cli-run)))
