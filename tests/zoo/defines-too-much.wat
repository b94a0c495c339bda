;; Defines rows until it gets no more: each costs its 64 numbers and its name of 3 bytes.
;; limits: definition_mib = 1
;; breaks: definition_mib
;; serves
(func $plan (param i32 i32) (result i32) (local $n i32)
    (loop $l
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $l (i32.eqz (call $define (i32.const 0) (i32.const 1024) (i32.const 3) (i32.const 0) (i32.const 0)
            (i32.const 8192) (i32.const 64)))))
    (if (i32.ne (local.get $n) (i32.const 4049)) (then unreachable))
    (call $half_b))
