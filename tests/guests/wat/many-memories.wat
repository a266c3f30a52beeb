;; Four core modules, each with a memory and a table of its own: a limit that counts one memory at a
;; time gives this guest four times as much. `run`, in the blocking world, grows all memories page by
;; page until each is refused one, and returns how many pages it was granted in total.
(component
  (import "taskcell:task/types@0.1.0" (instance $types
    (type $retry' (record (field "message" string) (field "after-ms" (option u32))))
    (export "retry" (type $retry (eq $retry')))
    (type $failure' (variant (case "permanent" string) (case "transient" $retry)))
    (export "failure" (type (eq $failure')))))
  (alias export $types "failure" (type $failure))

  (core module $Part
    (memory 1)
    (table 16 funcref)
    ;; How many pages the memory could still grow by.
    (func (export "grow") (result i64)
      (local $granted i64)
      (block $refused
        (loop $more
          (br_if $refused (i32.eq (i32.const -1) (memory.grow (i32.const 1))))
          (local.set $granted (i64.add (local.get $granted) (i64.const 1)))
          (br $more)))
      local.get $granted))

  (core module $Main
    (import "1" "grow" (func $grow1 (result i64)))
    (import "2" "grow" (func $grow2 (result i64)))
    (import "3" "grow" (func $grow3 (result i64)))
    (import "4" "grow" (func $grow4 (result i64)))
    (memory (export "memory") 2)

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
      (call $ok
        (i64.add
          (i64.add (call $grow1) (call $grow2))
          (i64.add (call $grow3) (call $grow4))))))

  (core instance $part1 (instantiate $Part))
  (core instance $part2 (instantiate $Part))
  (core instance $part3 (instantiate $Part))
  (core instance $part4 (instantiate $Part))
  (core instance $main (instantiate $Main
    (with "1" (instance $part1))
    (with "2" (instance $part2))
    (with "3" (instance $part3))
    (with "4" (instance $part4))))

  (alias core export $main "memory" (core memory $memory))
  (alias core export $main "realloc" (core func $realloc))
  (alias core export $main "run" (core func $run))
  (type $run (func (param "input" string) (result (result string (error $failure)))))
  (func (export "run") (type $run)
    (canon lift (core func $run) (memory $memory) (realloc $realloc)))
)
