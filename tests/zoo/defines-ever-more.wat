;; Defines rows under new names with every plan.
;; serves
(func $plan (param i32 i32) (result i32) (local $n i32)
    (loop $l
        (global.set $seen (i32.add (global.get $seen) (i32.const 1)))
        (i32.store8 (i32.const 8188) (i32.and (global.get $seen) (i32.const 127)))
        (i32.store8 (i32.const 8189) (i32.and (i32.shr_u (global.get $seen) (i32.const 7)) (i32.const 127)))
        (i32.store8 (i32.const 8190) (i32.shr_u (global.get $seen) (i32.const 14)))
        (drop (call $define (i32.const 0) (i32.const 8188) (i32.const 4) (i32.const 0) (i32.const 0)
            (i32.const 8192) (i32.const 64)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $n) (i32.const 3000))))
    (call $half_b))
