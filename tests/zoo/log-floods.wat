;; Writes a hundred thousand lines.
;; breaks: log_messages
;; serves
(func $plan (param i32 i32) (result i32) (local $n i32)
    (loop $l
        (call $log (i32.const 0) (i32.const 2) (i32.const 4096) (i32.const 5))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $n) (i32.const 100000))))
    (call $half_b))
(data (i32.const 4096) "flood")
