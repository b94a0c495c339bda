;; Answers with a hundred thousand programs.
;; plan: programs and ops, `plan_items` allows 4096
(func $plan (param i32 i32) (result i32) (local $n i32)
    (drop (memory.grow (i32.const 30)))
    (loop $l
        (memory.copy (i32.add (i32.const 65536) (i32.mul (local.get $n) (i32.const 20))) (i32.const 4096) (i32.const 20))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $n) (i32.const 50000))))
    (call $answer_programs (i32.const 0) (i32.const 65536) (i32.const 1000000)) (i32.const 0))
(data (i32.const 4096) "[[program]]\0aops=[]\0a\0a")
