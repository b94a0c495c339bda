;; Asks for the library while it decides rows: there is none then.
;; serves
(func $route (param i32 i32 i32) (result i32)
    (if (i64.ne (i64.const -1) (call $tensor (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 8192) (i32.const 9999)))
        (then unreachable))
    (if (i64.ne (i64.const -1) (call $singular_vector (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 9999) (i64.const 0)
            (i32.const 8192) (i32.const 9999)))
        (then unreachable))
    (if (i32.ne (i32.const -1) (call $define (i32.const 0) (i32.const 1024) (i32.const 3) (i32.const 0) (i32.const 0)
            (i32.const 8192) (i32.const 64)))
        (then unreachable))
    (call $good (local.get 1) (local.get 2)))
