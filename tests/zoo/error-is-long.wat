;; Says no with all of its memory.
;; plan: the router failed
(func $plan (param i32 i32) (result i32)
    (memory.fill (i32.const 8192) (i32.const 88) (i32.const 100000))
    (call $error (i32.const 0) (i32.const 8192) (i32.const 100000) (i32.const 8192) (i32.const 100000))
    (i32.const 4))
