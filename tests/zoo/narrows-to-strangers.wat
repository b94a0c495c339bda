;; Leaves what was no candidate.
;; chain
;; plan: narrowed to module 99, which is no candidate
(func $plan (param i32 i32) (result i32)
    (i32.store (i32.const 8192) (i32.const 99))
    (call $answer_narrowed (i32.const 0) (i32.const 8192) (i32.const 1)) (i32.const 0))
