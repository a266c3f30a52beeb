;; `run`, in the blocking world, fills and copies its whole memory of 16 MiB for ever: it keeps a
;; thread as busy as any loop, with few instructions to count or to interrupt.
(component
  (import "taskcell:task/types@0.1.0" (instance $types
    (type $retry' (record (field "message" string) (field "after-ms" (option u32))))
    (export "retry" (type $retry (eq $retry')))
    (type $failure' (variant (case "permanent" string) (case "transient" $retry)))
    (export "failure" (type (eq $failure')))))
  (alias export $types "failure" (type $failure))

  (core module $Main
    (memory (export "memory") 256)

    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      i32.const 64)

    (func (export "run") (param i32 i32) (result i32)
      (loop $again
        (memory.fill (i32.const 0) (i32.const 0xa5) (i32.const 0x1000000))
        ;; The two overlap but for a byte.
        (memory.copy (i32.const 1) (i32.const 0) (i32.const 0xffffff))
        (br $again))
      unreachable))

  (core instance $main (instantiate $Main))

  (alias core export $main "memory" (core memory $memory))
  (alias core export $main "realloc" (core func $realloc))
  (alias core export $main "run" (core func $run))
  (type $run (func (param "input" string) (result (result string (error $failure)))))
  (func (export "run") (type $run)
    (canon lift (core func $run) (memory $memory) (realloc $realloc)))
)
