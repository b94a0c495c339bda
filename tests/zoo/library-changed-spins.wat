;; An endless loop when it hears of the library.
;; limits: setup_fuel = 20000000
;; start: `library_changed` | all fuel consumed
(func $library_changed (param i32 i32 i32) (result i32) (loop $l (br $l)) unreachable)
