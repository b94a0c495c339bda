;; Has a name of a hundred thousand letters.
;; start: name
(func $init (param i32) (result i32)
    (memory.fill (i32.const 8192) (i32.const 88) (i32.const 100000))
    (call $describe (i32.const 0) (i32.const 8192) (i32.const 100000) (i32.const 8192) (i32.const 100000) (i32.const 1))
    (i32.const 0))
