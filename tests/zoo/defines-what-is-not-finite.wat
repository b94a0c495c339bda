;; Defines a row with a NaN, and one with an infinity.
;; serves
(func $plan (param i32 i32) (result i32)
    (f32.store (i32.const 8200) (f32.const nan))
    (call $refused (i32.const 0) (i32.const 0) (i32.const 64))
    (f32.store (i32.const 8200) (f32.const inf))
    (call $refused (i32.const 0) (i32.const 0) (i32.const 64))
    (call $half_b))
(func $refused (param i32 i32 i32)
    (if (i32.ne (i32.const -1) (call $define (i32.const 0) (i32.const 1024) (i32.const 3) (local.get 0) (local.get 1)
            (i32.const 8192) (local.get 2)))
        (then unreachable)))
