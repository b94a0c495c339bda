;; Logs all of its memory as one line.
;; serves
(func $plan (param i32 i32) (result i32)
    (call $log (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 131072))
    (call $half_b))
