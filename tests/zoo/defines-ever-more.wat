;; Defines rows under new names with every plan.
;; serves
(func $plan (param i32 i32) (result i32) (local $n i32)
    (loop $l
        (global.set $seen (i32.add (global.get $seen) (i32.const 1)))
        (i32.store (i32.const 8188) (global.get $seen))
        (drop (call $define (i32.const 0) (i32.const 8188) (i32.const 4) (i32.const 0) (i32.const 0)
            (i32.const 8192) (i32.const 64)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $n) (i32.const 3000))))
    (call $half_b))
