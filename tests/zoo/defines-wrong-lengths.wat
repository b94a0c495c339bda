;; Defines rows of other lengths, for modules and sites that there are not.
;; serves
(func $plan (param i32 i32) (result i32)
    (call $refused (i32.const 0) (i32.const 0) (i32.const 0))
    (call $refused (i32.const 0) (i32.const 0) (i32.const 63))
    (call $refused (i32.const 0) (i32.const 0) (i32.const 65))
    (call $refused (i32.const -1) (i32.const 0) (i32.const 64))
    (call $refused (i32.const 0) (i32.const -1) (i32.const 64))
    (call $refused (i32.const 0) (i32.const 21) (i32.const 64))
    (call $half_b))
(func $refused (param i32 i32 i32)
    (if (i32.ne (i32.const -1) (call $define (i32.const 0) (i32.const 1024) (i32.const 3) (local.get 0) (local.get 1)
            (i32.const 8192) (local.get 2)))
        (then unreachable)))
