;; `run`, in the blocking world, grows a table by 1024 elements at a time until it is refused, and
;; returns how many elements it was granted. Tables are memory of the host as well.
(component
  (import "taskcell:task/types@0.1.0" (instance $types
    (type $retry' (record (field "message" string) (field "after-ms" (option u32))))
    (export "retry" (type $retry (eq $retry')))
    (type $failure' (variant (case "permanent" string) (case "transient" $retry)))
    (export "failure" (type (eq $failure')))))
  (alias export $types "failure" (type $failure))

  (core module $Main
    (memory (export "memory") 2)
    (table $table 0 funcref)

    ;; The input goes to where the output will be written afterwards: nobody looks at it.
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      i32.const 64)

    ;; Lays out the result, ok: the text "number" in decimal digits, written backwards from 64.
    (func $ok (param $number i64) (result i32)
      (local $at i32)
      (local.set $at (i32.const 64))
      (loop $digit
        (local.set $at (i32.sub (local.get $at) (i32.const 1)))
        (i32.store8 (local.get $at)
          (i32.add (i32.const 48) (i32.wrap_i64 (i64.rem_u (local.get $number) (i64.const 10)))))
        (br_if $digit (i64.ne (i64.const 0)
          (local.tee $number (i64.div_u (local.get $number) (i64.const 10))))))
      (i32.store8 (i32.const 0) (i32.const 0))
      (i32.store (i32.const 4) (local.get $at))
      (i32.store (i32.const 8) (i32.sub (i32.const 64) (local.get $at)))
      i32.const 0)

    (func (export "run") (param i32 i32) (result i32)
      (local $granted i64)
      (block $refused
        (loop $more
          (br_if $refused
            (i32.eq (i32.const -1) (table.grow $table (ref.null func) (i32.const 1024))))
          (local.set $granted (i64.add (local.get $granted) (i64.const 1024)))
          (br $more)))
      (call $ok (local.get $granted))))

  (core instance $main (instantiate $Main))

  (alias core export $main "memory" (core memory $memory))
  (alias core export $main "realloc" (core func $realloc))
  (alias core export $main "run" (core func $run))
  (type $run (func (param "input" string) (result (result string (error $failure)))))
  (func (export "run") (type $run)
    (canon lift (core func $run) (memory $memory) (realloc $realloc)))
)
