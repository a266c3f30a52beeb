;; The smallest component of the blocking world.
(component
  (import "taskcell:task/types@0.1.0" (instance $types
    (type $retry' (record (field "message" string) (field "after-ms" (option u32))))
    (export "retry" (type $retry (eq $retry')))
    (type $failure' (variant (case "permanent" string) (case "transient" $retry)))
    (export "failure" (type (eq $failure')))))
  (alias export $types "failure" (type $failure))
  (core module $Main
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 64)
    (func (export "run") (param i32 i32) (result i32) unreachable))
  (core instance $main (instantiate $Main))
  (alias core export $main "memory" (core memory $memory))
  (alias core export $main "realloc" (core func $realloc))
  (alias core export $main "run" (core func $run))
  (type $run (func (param "input" string) (result (result string (error $failure)))))
  (func (export "run") (type $run)
    (canon lift (core func $run) (memory $memory) (realloc $realloc))))
