;; A memory of at most two pages and a table of at most 16 elements. `run`, in the blocking world, grows
;; both, again and again, by more than they may have, and traps.
(component
  (import "taskcell:task/types@0.1.0" (instance $types
    (type $retry' (record (field "message" string) (field "after-ms" (option u32))))
    (export "retry" (type $retry (eq $retry')))
    (type $failure' (variant (case "permanent" string) (case "transient" $retry)))
    (export "failure" (type (eq $failure')))))
  (alias export $types "failure" (type $failure))

  (core module $Part
    (memory 1 2)
    (table $table 8 16 funcref)
    (func (export "grow")
      (local $left i32)
      (drop (memory.grow (i32.const 1)))
      (drop (table.grow $table (ref.null func) (i32.const 8)))
      (local.set $left (i32.const 1000))
      (loop $again
        (drop (memory.grow (i32.const 1)))
        (drop (memory.grow (i32.const 65536)))
        (drop (table.grow $table (ref.null func) (i32.const 8)))
        (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))

  (core module $Main
    (import "part" "grow" (func $grow))
    (memory (export "memory") 2)

    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      i32.const 64)

    (func (export "run") (param i32 i32) (result i32)
      (call $grow)
      unreachable))

  (core instance $part (instantiate $Part))
  (core instance $main (instantiate $Main (with "part" (instance $part))))

  (alias core export $main "memory" (core memory $memory))
  (alias core export $main "realloc" (core func $realloc))
  (alias core export $main "run" (core func $run))
  (type $run (func (param "input" string) (result (result string (error $failure)))))
  (func (export "run") (type $run)
    (canon lift (core func $run) (memory $memory) (realloc $realloc)))
)
